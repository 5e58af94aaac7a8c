#include <shunt/layer/moe_layer.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <shunt/core/error.h>
#include <shunt/core/random.h>

#include "reference.h"

namespace shunt {
namespace {

using test::Reference;

std::size_t at(std::int64_t i) {
  return static_cast<std::size_t>(i);
}

MoeLayerConfig small() {
  MoeLayerConfig config;
  config.hidden = 9;
  config.ffn = 7;
  config.gate = make_gate("softk", 5, 2);
  config.seed = 3;
  return config;
}

/// A layer with what belongs to a step: tokens, results, and a gradient of them.
struct Case {
  explicit Case(const MoeLayerConfig& config, std::int64_t tokens_in) : layer(config), tokens(tokens_in) {
    Random random(config.seed, 7);
    const auto element = [&](std::vector<double>& values, std::vector<std::byte>& bytes) {
      bytes.resize(at(tokens * config.hidden * dtype_bytes(config.dtype)));
      for (std::int64_t i = 0; i < tokens * config.hidden; ++i) {
        store_element(config.dtype, bytes.data(), i, static_cast<float>(random.normal()));
        values.push_back(static_cast<double>(load_element(config.dtype, bytes.data(), i)));
      }
    };
    element(x, x_bytes);
    element(by, by_bytes);
    out.resize(x_bytes.size());
    grad_x.resize(x_bytes.size());
    // Biases that do something, and weights that bf16 holds.
    const auto shake = [&](ExpertFfn& experts) {
      for (std::size_t slice = 2; slice < experts.layout().size(); ++slice) {
        const ParameterSlice& of = experts.layout()[slice];
        for (std::int64_t i = 0; i < of.rows * of.cols; ++i)
          experts.parameters()[at(of.offset + i)] = static_cast<float>(0.3 * random.normal());
      }
      if (config.dtype == DType::bf16)
        for (float& weight : experts.parameters()) weight = bf16_to_f32(f32_to_bf16(weight));
      experts.parameters_changed();
    };
    shake(layer.experts());
    if (layer.shared() != nullptr) shake(*layer.shared());
  }

  [[nodiscard]] MoeInput input() const {
    return {.tokens = Rows(x_bytes.data(), tokens, layer.config().hidden, layer.config().dtype)};
  }
  void forward() {
    layer.forward(input(), {out.data(), tokens, layer.config().hidden, layer.config().dtype});
  }
  void backward(bool accumulate = false) {
    layer.backward(Rows(by_bytes.data(), tokens, layer.config().hidden, layer.config().dtype),
                   {grad_x.data(), tokens, layer.config().hidden, layer.config().dtype}, gradients,
                   accumulate);
  }
  [[nodiscard]] std::vector<float> read(const std::vector<std::byte>& bytes) const {
    std::vector<float> values(at(tokens * layer.config().hidden));
    for (std::size_t i = 0; i < values.size(); ++i)
      values[i] = load_element(layer.config().dtype, bytes.data(), static_cast<std::int64_t>(i));
    return values;
  }

  MoeLayer layer;
  std::int64_t tokens;
  std::vector<double> x, by;
  std::vector<std::byte> x_bytes, by_bytes, out, grad_x;
  MoeGradients gradients;
};

/// Every value within `bound` of the largest.
void expect_near(const std::vector<float>& got, const std::vector<double>& wanted, double bound,
                 const std::string& what) {
  ASSERT_EQ(got.size(), wanted.size()) << what;
  double largest = 1e-3;
  for (const double value : wanted) largest = std::max(largest, std::abs(value));
  for (std::size_t i = 0; i < got.size(); ++i)
    ASSERT_NEAR(static_cast<double>(got[i]), wanted[i], bound * largest) << what << ", element " << i;
}

void expect_like_reference(const MoeLayerConfig& config, std::int64_t tokens, double bound,
                           const std::string& name) {
  SCOPED_TRACE(name);
  Case one(config, tokens);
  Reference reference(one.layer);
  one.forward();
  double aux = 0;
  expect_near(one.read(one.out), reference.forward(one.x, aux), bound, "results");
  EXPECT_NEAR(one.layer.step().aux_loss, aux, 1e-5 * std::abs(aux));
  one.backward();
  const auto slopes = [&](std::vector<double>& of) {
    std::vector<double> found;
    for (double& number : of) found.push_back(slope(number, reference, one.x, one.by));
    return found;
  };
  std::vector<double> x = one.x;
  std::vector<double> by_x;
  for (double& number : x) by_x.push_back(slope(number, reference, x, one.by));
  expect_near(one.read(one.grad_x), by_x, bound, "gradient by tokens");
  expect_near(one.gradients.router, slopes(reference.router), bound, "gradient by the router");
  expect_near(one.gradients.experts, slopes(reference.experts), bound, "gradient by experts");
  expect_near(one.gradients.shared, slopes(reference.shared), bound, "gradient by shared experts");
}

TEST(MoeLayerTest, EqualsTheReferenceForwardAndBackward) {
  for (const Activation activation : {Activation::gelu, Activation::silu, Activation::swiglu})
    for (const CapacityMode mode : {CapacityMode::dropless, CapacityMode::drop, CapacityMode::pad})
      for (const MatmulBackend backend : {MatmulBackend::automatic, MatmulBackend::own}) {
        MoeLayerConfig config = small();
        config.activation = activation;
        config.capacity_mode = mode;
        config.capacity.factor = 0.8;
        config.backend = backend;
        config.bias = mode != CapacityMode::drop;
        config.shared_experts = mode == CapacityMode::pad ? 0 : 2;
        config.renormalise = backend == MatmulBackend::own ? Renormalise::to_one : Renormalise::no;
        config.balance = 0.1;
        config.z_loss = 0.01;
        expect_like_reference(config, 11, 2e-5,
                              std::string(activation_name(activation)) + ", mode " +
                                  std::to_string(static_cast<int>(mode)) + ", " + matmul_name(backend));
      }
}

TEST(MoeLayerTest, EqualsTheReferenceInBfloat16) {
  for (const MatmulBackend backend : {MatmulBackend::automatic, MatmulBackend::own}) {
    MoeLayerConfig config = small();
    config.dtype = DType::bf16;
    config.activation = Activation::swiglu;
    config.bias = true;
    config.shared_experts = 1;
    config.backend = backend;
    expect_like_reference(config, 11, 3e-2, matmul_name(backend));
  }
}

TEST(MoeLayerTest, RowsOfManyBlocksEqualTheReference) {
  MoeLayerConfig config = small();
  config.gate = make_gate("softk", 2, 1);
  config.gate.top_k = 1;
  Case one(config, 700);
  const Reference reference(one.layer);
  one.forward();
  double aux = 0;
  expect_near(one.read(one.out), reference.forward(one.x, aux), 2e-5, "results");
}

TEST(MoeLayerTest, ThreadsDoNotShowInAnyBit) {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    MoeLayerConfig config = small();
    config.dtype = dtype;
    config.shared_experts = 1;
    config.balance = 0.1;
    Case one(config, 300);
    config.threads = 3;
    Case three(config, 300);
    for (Case* of : {&one, &three}) {
      of->forward();
      of->backward();
    }
    EXPECT_EQ(one.out, three.out);
    EXPECT_EQ(one.grad_x, three.grad_x);
    EXPECT_EQ(one.gradients.router, three.gradients.router);
    EXPECT_EQ(one.gradients.experts, three.gradients.experts);
    EXPECT_EQ(one.gradients.shared, three.gradients.shared);
  }
}

TEST(MoeLayerTest, AccumulatesGradients) {
  MoeLayerConfig config = small();
  config.bias = true;
  config.shared_experts = 1;
  Case one(config, 13);
  one.forward();
  one.backward();
  const MoeGradients once = one.gradients;
  one.forward();
  one.backward(true);
  const auto twice = [](const std::vector<float>& of) {
    std::vector<double> doubled;
    for (const float value : of) doubled.push_back(2 * static_cast<double>(value));
    return doubled;
  };
  expect_near(one.gradients.router, twice(once.router), 1e-5, "router");
  expect_near(one.gradients.experts, twice(once.experts), 1e-5, "experts");
  expect_near(one.gradients.shared, twice(once.shared), 1e-5, "shared");
  one.forward();
  one.backward();
  EXPECT_EQ(one.gradients.experts, once.experts) << "what was there must not stay";
}

TEST(MoeLayerTest, NoTokensGiveNoGradients) {
  Case none(small(), 0);
  none.forward();
  none.backward();
  for (const float value : none.gradients.experts) ASSERT_EQ(value, 0.0F);
  for (const float value : none.gradients.router) ASSERT_EQ(value, 0.0F);
}

TEST(MoeLayerTest, AnExpertWithoutTokensGetsNoGradient) {
  MoeLayerConfig config = small();
  Case one(config, 10);
  // Expert 2 is never wanted.
  one.layer.router().parameters()[at(config.hidden * 5 + 2)] = -1000.0F;
  one.gradients.experts.assign(one.layer.experts().parameters().size(), 7.0F);
  one.forward();
  one.backward();
  const std::int64_t w1 = config.hidden * config.ffn;
  for (std::int64_t i = 0; i < w1; ++i) ASSERT_EQ(one.gradients.experts[at(2 * w1 + i)], 0.0F);
  EXPECT_NE(one.gradients.experts[0], 7.0F);
}

bool all_zero(const std::vector<float>& of) {
  return std::all_of(of.begin(), of.end(), [](float value) { return value == 0.0F; });
}

TEST(MoeLayerTest, CountsGiveTheRouterNoGradient) {
  // Weights that are 1 say nothing to the router, and neither does a loss of counts (compat-variance), which is why there
  // is none to ask for; one of probabilities does.
  MoeLayerConfig config = small();
  config.gate = make_gate("compat-topk-hard", 5, 2);
  Case counted(config, 20);
  counted.forward();
  counted.backward();
  EXPECT_TRUE(all_zero(counted.gradients.router));
  EXPECT_FALSE(all_zero(counted.gradients.experts));
  config.balance = 0.1;
  Case balanced(config, 20);
  balanced.forward();
  balanced.backward();
  EXPECT_FALSE(all_zero(balanced.gradients.router));
}

TEST(MoeLayerTest, EveryGateAndNetworkRuns) {
  for (const std::string& name : gate_names()) {
    MoeLayerConfig config = small();
    const bool single = name == "top1" || name == "compat-top1";
    config.gate = make_gate(name, 8, single ? 1 : 2);
    config.arch = name.size() % 2 == 0 ? GateArch::mlp : GateArch::cosine;
    config.jitter = 0.01;
    config.logit_noise = 0.01;
    Case one(config, 16);
    std::vector<std::int64_t> ids(16);
    for (std::size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<std::int64_t>(i * i);
    MoeInput input = one.input();
    input.token_ids = ids;
    one.layer.forward(input, {one.out.data(), 16, config.hidden, config.dtype});
    one.backward();
    for (const float value : one.read(one.out)) ASSERT_TRUE(std::isfinite(value)) << name;
    for (const float value : one.read(one.grad_x)) ASSERT_TRUE(std::isfinite(value)) << name;
    EXPECT_FALSE(all_zero(one.gradients.experts)) << name;
  }
}

std::string error_of(Errc code, const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    EXPECT_EQ(errc_name(error.code()), std::string(errc_name(code))) << error.what();
    return error.what();
  }
  ADD_FAILURE() << "no error";
  return {};
}

TEST(MoeLayerTest, RefusesWhatMeansNothing) {
  const auto refused = [](const std::function<void(MoeLayerConfig&)>& change) {
    MoeLayerConfig config = small();
    change(config);
    return error_of(Errc::invalid_argument, [&config] { const MoeLayer layer(config); });
  };
  EXPECT_NE(refused([](MoeLayerConfig& c) { c.gate.top_k = 6; }).find("6"), std::string::npos);
  EXPECT_NE(refused([](MoeLayerConfig& c) { c.hidden = 0; }).find("allowed"), std::string::npos);
  EXPECT_NE(refused([](MoeLayerConfig& c) { c.ffn = 0; }).find("ffn"), std::string::npos);
  EXPECT_NE(refused([](MoeLayerConfig& c) { c.dtype = DType::f16; }).find("bfloat16"), std::string::npos);
  EXPECT_NE(refused([](MoeLayerConfig& c) { c.threads = 0; }).find("threads"), std::string::npos);
  EXPECT_NE(refused([](MoeLayerConfig& c) { c.jitter = 1; }).find("jitter"), std::string::npos);
  EXPECT_NE(refused([](MoeLayerConfig& c) { c.z_loss = -1; }).find("z-loss"), std::string::npos);
  for (const double factor : {0.0, -1.0, std::numeric_limits<double>::quiet_NaN()})
    EXPECT_NE(refused([factor](MoeLayerConfig& c) {
                c.capacity_mode = CapacityMode::drop;
                c.capacity.factor = factor;
              }).find("factor"),
              std::string::npos);
  EXPECT_NE(error_of(Errc::invalid_argument, [] { (void)parse_activation("gleu"); }).find("gelu"),
            std::string::npos);
}

TEST(MoeLayerTest, RefusesWrongSteps) {
  Case one(small(), 4);
  EXPECT_NE(error_of(Errc::invalid_state, [&] { one.backward(); }).find("forward"), std::string::npos);
  std::vector<float> tokens(32);
  EXPECT_NE(error_of(Errc::invalid_argument,
                     [&] {
                       one.layer.forward({.tokens = Rows(tokens.data(), 4, 8, DType::f32)},
                                         {one.out.data(), 4, 9, DType::f32});
                     })
                .find("[4, 8]"),
            std::string::npos)
      << "the message names what was given";
}

TEST(MoeLayerTest, NamesTheTokenThatIsNotANumber) {
  Case one(small(), 4);
  store_element(DType::f32, one.x_bytes.data(), 2 * 9 + 1, std::numeric_limits<float>::quiet_NaN());
  EXPECT_NE(error_of(Errc::invalid_argument, [&] { one.forward(); }).find("token 2"), std::string::npos);
}

}  // namespace
}  // namespace shunt
