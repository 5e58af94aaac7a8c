#include <sys/wait.h>

#include <cstdlib>
#include <sstream>
#include <string>

#include <gtest/gtest.h>

#include <shunt/routing/gate_network.h>
#include <shunt/routing/losses.h>

#include "golden.h"
#include "temp_dir.h"

namespace shunt {
namespace {

using test::Matrix;
using test::random_logits;

constexpr std::int64_t kTokens = 12;
constexpr std::int32_t kExperts = 16;

/// One line of JSON for tests/routing/autograd.py.
class Case {
 public:
  explicit Case(const std::string& kind, const std::string& name, bool wrong = false) {
    text_.precision(17);
    text_ << "{\"kind\":\"" << kind << "\",\"name\":\"" << name
          << "\",\"wrong\":" << (wrong ? "true" : "false");
  }
  Case& set(const char* key, double value) {
    text_ << ",\"" << key << "\":" << value;
    return *this;
  }
  Case& set(const char* key, std::int64_t value) {
    text_ << ",\"" << key << "\":" << value;
    return *this;
  }
  Case& set(const char* key, const std::string& value) {
    text_ << ",\"" << key << "\":\"" << value << '"';
    return *this;
  }
  template <class T>
  Case& set(const char* key, const std::vector<T>& values) {
    text_ << ",\"" << key << "\":[";
    for (std::size_t i = 0; i < values.size(); ++i) text_ << (i == 0 ? "" : ",") << values[i];
    text_ << ']';
    return *this;
  }
  [[nodiscard]] std::string line() const { return text_.str() + "}\n"; }

 private:
  std::ostringstream text_;
};

std::vector<double> normals(std::int64_t count, std::uint64_t seed) {
  std::vector<double> values(static_cast<std::size_t>(count));
  Random random(seed);
  for (double& value : values) value = random.normal();
  return values;
}

std::string gate_case(const GateConfig& gate, const std::string& name, bool wrong = false) {
  const Matrix<double> logits = random_logits(kTokens, kExperts, 31);
  std::vector<double> bias;
  if (gate.selection == Selection::top_k) bias = normals(kExperts, 32);
  const GateInput<double> input{.logits = logits.view(), .bias = bias};
  const GateOutput<double> out = gate_forward(gate, input);
  const std::vector<double> grad_weights = normals(kTokens * out.top_k, 33);
  Matrix<double> grad(kTokens, kExperts);
  gate_backward<double>(gate, input, out, grad_weights, grad.view());
  std::vector<std::int32_t> ids = out.ids;
  // Of compat-expert-choice an expert can be named and have no weight.
  for (std::size_t i = 0; gate.selection == Selection::compat_expert_choice && i < ids.size(); ++i)
    if (out.weights[i] == 0) ids[i] = -1;
  const char* scores[] = {"logit", "softmax", "sigmoid", "sqrt_softplus"};
  const char* rules[] = {"softmax_chosen", "score",          "sum",           "p_norm",
                         "relu_sum",       "softmax_chosen", "softmax_chosen"};
  if (wrong) grad.data[5] += 1e-6;
  return Case("gate", name, wrong)
      .set("tokens", kTokens)
      .set("experts", std::int64_t{kExperts})
      .set("width", std::int64_t{out.top_k})
      .set("temperature", gate.temperature)
      .set("scale", gate.scale)
      .set("power", gate.norm_power)
      .set("score", std::string(scores[static_cast<int>(gate.score)]))
      .set("rule", std::string(rules[static_cast<int>(gate.weights)]))
      .set("ids", ids)
      .set("grad_weights", grad_weights)
      .set("at", logits.data)
      .set("grad", grad.data)
      .line();
}

std::string gate_cases() {
  std::string lines;
  for (const std::string& name : gate_names()) {
    for (const std::int32_t k : {1, 2, 3}) {
      if (name.find("top1") != std::string::npos && k > 1) continue;
      GateConfig gate = make_gate(name, kExperts, k);
      const bool constant = gate.weights == WeightRule::mean || gate.weights == WeightRule::one;
      if (constant && !gate.straight_through) continue;  // gradient_test.cpp shows that there is none
      if (k == 3) gate.temperature = 1.7;
      lines += gate_case(gate, name + " k " + std::to_string(k));
    }
  }
  GateConfig normed = make_gate("pre-softmax", kExperts, 3);
  normed.weights = WeightRule::p_norm;
  normed.norm_power = 2.5;
  return lines + gate_case(normed, "p-norm");
}

std::string loss_case(Case& one, const Matrix<double>& logits, const Matrix<double>& grad) {
  return one.set("tokens", logits.rows)
      .set("experts", logits.cols)
      .set("at", logits.data)
      .set("grad", grad.data)
      .line();
}

std::string loss_cases() {
  const Matrix<double> logits = random_logits(kTokens, kExperts, 41);
  std::string lines;
  const char* forms[] = {"switch", "mixtral", "gshard"};
  const std::pair<Score, const char*> scores[] = {
      {Score::softmax, "softmax"}, {Score::sigmoid, "sigmoid"}, {Score::sqrt_softplus, "sqrt_softplus"}};
  for (const char* form : forms) {
    for (const auto& [score, score_name] : scores) {
      for (const std::int64_t length : {std::int64_t{0}, std::int64_t{4}}) {
        const BalanceLoss loss{.form = parse_balance_form(form),
                               .coefficient = 0.3,
                               .top_k = 2,
                               .score = score,
                               .sequence_tokens = length};
        Matrix<double> grad(kTokens, kExperts);
        (void)balance_loss<double>(loss, logits.view(), {}, grad.view());
        lines +=
            loss_case(Case("balance", std::string(form) + " " + score_name + " " + std::to_string(length))
                          .set("form", std::string(form))
                          .set("coefficient", 0.3)
                          .set("top_k", std::int64_t{2})
                          .set("score", std::string(score_name))
                          .set("sequence_tokens", length),
                      logits, grad);
      }
    }
  }
  Matrix<double> of_z(kTokens, kExperts);
  (void)z_loss<double>(0.7, logits.view(), of_z.view());
  lines += loss_case(Case("z", "z-loss").set("coefficient", 0.7), logits, of_z);
  const std::vector<double> noise = normals(kTokens * kExperts, 42);
  Matrix<double> noisy = logits;
  for (std::size_t i = 0; i < noise.size(); ++i) noisy.data[i] += noise[i];
  Matrix<double> of_load(kTokens, kExperts);
  (void)importance_load_loss<double>(0.9, 3, 0.8, logits.view(), noisy.view(), of_load.view());
  return lines + loss_case(Case("importance_load", "importance and load")
                               .set("coefficient", 0.9)
                               .set("top_k", std::int64_t{3})
                               .set("deviation", 0.8)
                               .set("noise", noise),
                           logits, of_load);
}

std::string network_cases() {
  constexpr std::int64_t kHidden = 10;
  std::string lines;
  for (const char* arch : {"linear", "mlp", "mlp-hadamard", "cosine"}) {
    const GateNetwork<double> network(
        {.arch = parse_gate_arch(arch), .hidden = kHidden, .num_experts = kExperts, .inner = 6}, 51);
    Matrix<double> x(kHidden, normals(kTokens * kHidden, 52));
    Matrix<double> logits(kTokens, kExperts), grad_logits(kExperts, normals(kTokens * kExperts, 53));
    GateNetwork<double>::Trace trace;
    const Matrix<double>& tokens = x;
    network.forward(tokens.view(), logits.view(), trace);
    std::vector<double> grad(network.parameters().size());
    Matrix<double> grad_x(kTokens, kHidden);
    const Matrix<double>& of_logits = grad_logits;
    network.backward(tokens.view(), trace, of_logits.view(), grad, grad_x.view());
    std::vector<double> at = network.parameters();
    at.insert(at.end(), x.data.begin(), x.data.end());
    grad.insert(grad.end(), grad_x.data.begin(), grad_x.data.end());
    lines += Case("network", arch)
                 .set("arch", std::string(arch))
                 .set("tokens", kTokens)
                 .set("experts", std::int64_t{kExperts})
                 .set("hidden", kHidden)
                 .set("inner", std::int64_t{6})
                 .set("grad_logits", grad_logits.data)
                 .set("at", at)
                 .set("grad", grad)
                 .line();
  }
  return lines;
}

/// What the script says, and its exit status. Debian's Python first, since a Python of the user's rarely has PyTorch.
int run_script(const std::string& cases, const std::string& said) {
  int status = 0;
  for (const char* python : {"/usr/bin/python3", "python3"}) {
    const int raw = std::system(
        (std::string(python) + " tests/routing/autograd.py " + cases + " >" + said + " 2>&1").c_str());
    status = WIFEXITED(raw) ? WEXITSTATUS(raw) : -1;
    if (status != 77 && status != 127) break;
  }
  return status;
}

TEST(AutogradTest, AgreesWithPyTorchOnEveryGateLossAndNetwork) {
  const test::TempDir folder;
  const std::string cases =
      folder.write("cases.jsonl", gate_cases() + loss_cases() + network_cases() +
                                      gate_case(make_gate("softk", kExperts, 2), "softk", true));
  const int status = run_script(cases, folder.file("said"));
  std::ifstream in(folder.file("said"));
  std::ostringstream text;
  text << in.rdbuf();
  if (status == 77 || status == 127) GTEST_SKIP() << text.str();
  EXPECT_EQ(status, 0) << text.str();
  EXPECT_NE(text.str().find(" 0 wrong"), std::string::npos) << text.str();
}

}  // namespace
}  // namespace shunt
