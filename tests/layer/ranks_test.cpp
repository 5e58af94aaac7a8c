// The layer over ranks gives the bits of the layer in one process.
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <shunt/core/error.h>
#include <shunt/core/random.h>
#include <shunt/layer/moe_layer.h>
#include <shunt/layout/partition.h>
#include <shunt/transport/launch.h>
#include <shunt/transport/transport.h>

namespace shunt {
namespace {

constexpr std::int64_t kHidden = 24, kFfn = 20, kTokens = 61;
constexpr std::int32_t kExperts = 6;

std::size_t at(std::int64_t i) {
  return static_cast<std::size_t>(i);
}

void expect(bool ok, const std::string& what) {
  if (!ok) throw Error(Errc::check_failed, what);
}

/// What a layer made of some tokens.
struct Made {
  std::vector<std::byte> out, grad_x;
  MoeGradients gradients;
};

/// Tokens [first, first + count) of the global batch, forward and backward, twice, so that a second step follows a first.
Made run(MoeLayer& layer, std::int64_t first, std::int64_t count) {
  const DType dtype = layer.config().dtype;
  const std::int64_t bytes = kHidden * dtype_bytes(dtype);
  std::vector<std::byte> x(at(count * bytes)), by(at(count * bytes));
  for (std::int64_t t = 0; t < count; ++t) {
    Random random(5, static_cast<std::uint64_t>(first + t));
    for (std::int64_t i = 0; i < kHidden; ++i) {
      store_element(dtype, x.data(), t * kHidden + i, static_cast<float>(random.normal()));
      store_element(dtype, by.data(), t * kHidden + i, static_cast<float>(random.normal()));
    }
  }
  Made made;
  made.out.resize(x.size());
  made.grad_x.resize(x.size());
  for (int step = 0; step < 2; ++step) {
    // A forward that no backward follows, as in inference.
    layer.forward({.tokens = Rows(x.data(), count, kHidden, dtype)},
                  {made.out.data(), count, kHidden, dtype});
    layer.forward({.tokens = Rows(x.data(), count, kHidden, dtype)},
                  {made.out.data(), count, kHidden, dtype});
    layer.backward(Rows(by.data(), count, kHidden, dtype), {made.grad_x.data(), count, kHidden, dtype},
                   made.gradients);
  }
  return made;
}

/// Ranks bring uneven parts of the batch; the last of several brings none.
TokenShare share_of(std::int32_t rank, std::int32_t ranks) {
  if (ranks == 1) return {0, kTokens};
  return rank == ranks - 1 ? TokenShare{kTokens, kTokens} : token_share(kTokens, ranks - 1, rank);
}

/// Rows of a slice that belong to the experts of a rank are where they are in one process.
void expect_same_experts(const std::vector<float>& mine, MoeLayer& layer, const std::vector<float>& all,
                         std::int32_t first, const std::string& where) {
  std::int64_t of_all = 0;
  for (const ParameterSlice& slice : layer.experts().layout()) {
    const std::int64_t count = layer.experts().config().num_experts;
    if (count == 0) return;
    const std::int64_t each = slice.rows / count * slice.cols;
    expect(std::memcmp(mine.data() + slice.offset, all.data() + of_all + first * each,
                       at(count * each * 4)) == 0,
           where + ": gradients of " + slice.name + " have other bits than in one process");
    of_all += kExperts * each;
  }
}

void expect_same_bits(const MoeLayerConfig& config) {
  MoeLayer alone(config);
  const Made all = run(alone, 0, kTokens);
  for (const std::int32_t ranks : {1, 2, 4, 8}) {
    const auto outcomes = run_ranks({.ranks = ranks}, [&](Transport& transport) {
      const std::int32_t rank = transport.world().rank;
      const std::string where = "rank " + std::to_string(rank) + " of " + std::to_string(ranks);
      MoeLayer layer(config, &transport);
      const TokenShare mine = share_of(rank, ranks);
      const Made made = run(layer, mine.begin, mine.end - mine.begin);
      const std::int64_t bytes = kHidden * dtype_bytes(config.dtype);
      const auto same = [&](const std::vector<std::byte>& got, const std::vector<std::byte>& wanted) {
        return got.empty() || std::memcmp(got.data(), wanted.data() + mine.begin * bytes, got.size()) == 0;
      };
      expect(same(made.out, all.out), where + ": results have other bits than in one process");
      expect(same(made.grad_x, all.grad_x), where + ": token gradients have other bits than in one process");
      expect_same_experts(made.gradients.experts, layer, all.gradients.experts,
                          ExpertPartition{kExperts, ranks}.first(rank), where);
      if (ranks == 1)
        expect(made.gradients.router == all.gradients.router, where + ": the router's gradient differs");
      return 0;
    });
    for (const RankOutcome& outcome : outcomes)
      EXPECT_EQ(outcome.exit_status, 0) << "rank " << outcome.rank << ": " << outcome.message;
  }
}

MoeLayerConfig base() {
  MoeLayerConfig config;
  config.hidden = kHidden;
  config.ffn = kFfn;
  config.gate = make_gate("softk", kExperts, 2);
  config.max_tokens = kTokens;
  config.bias = true;
  return config;
}

TEST(MoeLayerRanksTest, GiveTheBitsOfOneProcess) {
  MoeLayerConfig config = base();
  config.activation = Activation::swiglu;
  expect_same_bits(config);
}

TEST(MoeLayerRanksTest, GiveTheBitsOfOneProcessInBfloat16) {
  MoeLayerConfig config = base();
  config.dtype = DType::bf16;
  expect_same_bits(config);
}

TEST(MoeLayerRanksTest, GiveTheBitsOfOneProcessWithSharedExperts) {
  MoeLayerConfig config = base();
  config.shared_experts = 1;
  config.backend = MatmulBackend::own;
  config.gate = make_gate("sigmoid", kExperts, 2);
  expect_same_bits(config);
}

TEST(MoeLayerRanksTest, DropsByTheTokensOfEachRank) {
  MoeLayerConfig config = base();
  config.capacity_mode = CapacityMode::drop;
  config.capacity.factor = 0.7;
  config.renormalise = Renormalise::to_one;
  // Each rank's tokens alone in one process make what the ranks must make.
  constexpr std::int32_t kRanks = 3;
  std::vector<Made> parts;
  for (std::int32_t rank = 0; rank < kRanks; ++rank) {
    MoeLayer alone(config);
    const TokenShare mine = share_of(rank, kRanks);
    parts.push_back(run(alone, mine.begin, mine.end - mine.begin));
  }
  const auto outcomes = run_ranks({.ranks = kRanks}, [&](Transport& transport) {
    const auto rank = static_cast<std::size_t>(transport.world().rank);
    MoeLayer layer(config, &transport);
    const TokenShare mine = share_of(transport.world().rank, kRanks);
    const Made made = run(layer, mine.begin, mine.end - mine.begin);
    expect(mine.begin == mine.end || layer.step().num_dropped > 0, "nothing was dropped");
    for (std::size_t i = 0; i < made.out.size() / 4; ++i) {
      const auto element = static_cast<std::int64_t>(i);
      const float out = load_element(DType::f32, made.out.data(), element) -
                        load_element(DType::f32, parts[rank].out.data(), element);
      const float grad = load_element(DType::f32, made.grad_x.data(), element) -
                         load_element(DType::f32, parts[rank].grad_x.data(), element);
      expect(std::abs(out) < 1e-4F && std::abs(grad) < 1e-3F,
             "rank " + std::to_string(rank) + ": element " + std::to_string(i) + " differs");
    }
    return 0;
  });
  for (const RankOutcome& outcome : outcomes)
    EXPECT_EQ(outcome.exit_status, 0) << "rank " << outcome.rank << ": " << outcome.message;
}

TEST(MoeLayerRanksTest, ExpertChoiceCrosses) {
  MoeLayerConfig config = base();
  config.gate = make_gate("expert-choice", kExperts, 2);
  const auto outcomes = run_ranks({.ranks = 2}, [&](Transport& transport) {
    MoeLayer layer(config, &transport);
    const TokenShare mine = token_share(kTokens, 2, transport.world().rank);
    const Made made = run(layer, mine.begin, mine.end - mine.begin);
    expect(!made.gradients.router.empty() && made.gradients.router[0] != 0.0F, "the router learns nothing");
    return 0;
  });
  for (const RankOutcome& outcome : outcomes)
    EXPECT_EQ(outcome.exit_status, 0) << "rank " << outcome.rank << ": " << outcome.message;
}

TEST(MoeLayerRanksTest, RefusesWhatCannotCross) {
  const auto outcomes = run_ranks({.ranks = 1}, [&](Transport& transport) {
    MoeLayerConfig config = base();
    config.gate = make_gate("compat-hash", kExperts, 2);
    try {
      const MoeLayer layer(config, &transport);
    } catch (const Error& error) {
      expect(error.code() == Errc::invalid_argument, error.what());
      return 0;
    }
    return 1;
  });
  for (const RankOutcome& outcome : outcomes) EXPECT_EQ(outcome.exit_status, 0) << outcome.message;
}

}  // namespace
}  // namespace shunt
