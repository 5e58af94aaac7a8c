// AllToAll between ranks that do not reach each other's memory: what crosses, what is summed on the way and what damage
// is found. That all bits are those of one node is the sweep's business (sweep_test.cpp).
#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <alltoall/formats.h>
#include <crossings.h>
#include <shunt/alltoall/all_to_all.h>
#include <shunt/core/error.h>
#include <shunt/core/random.h>
#include <shunt/layout/traffic.h>
#include <shunt/transport/collectives.h>
#include <shunt/transport/launch.h>
#include <shunt/transport/wrap.h>

namespace shunt {
namespace {

void expect(bool ok, const std::string& what) {
  if (!ok) throw Error(Errc::check_failed, what);
}

constexpr std::int64_t kTokens = 96;
constexpr std::int64_t kHidden = 40;

AllToAllConfig bf16_config(Path path, std::int64_t hidden = kHidden) {
  AllToAllConfig config;
  config.max_tokens = kTokens;
  config.num_experts = 30;
  config.top_k = 5;
  config.hidden = hidden;
  config.path = path;
  config.deadline = std::chrono::milliseconds(20'000);
  return config;
}

/// Uniform routing and tokens of one rank, the same wherever they are computed.
struct Input {
  std::vector<std::int32_t> ids;
  std::vector<float> weights;
  std::vector<std::byte> tokens;

  Input(const AllToAllConfig& config, std::int32_t rank) {
    Random dice(7, static_cast<std::uint64_t>(rank));
    for (std::int64_t t = 0; t < config.max_tokens; ++t) {
      std::vector<std::int32_t> deck;
      for (std::int32_t e = 0; e < config.num_experts; ++e) deck.push_back(e);
      for (std::size_t k = 0; k < static_cast<std::size_t>(config.top_k); ++k) {
        std::swap(deck[k], deck[k + dice.below(deck.size() - k)]);
        ids.push_back(deck[k]);
        weights.push_back(static_cast<float>(dice.uniform()) - 0.25F);
      }
    }
    tokens.resize(static_cast<std::size_t>(config.max_tokens * config.hidden * 2));
    for (std::int64_t i = 0; i < config.max_tokens * config.hidden; ++i)
      oracle::encode(config.token_dtype, dice.uniform() * 4 - 2, tokens.data() + 2 * i);
  }
  [[nodiscard]] View2<const std::int32_t> id_view(const AllToAllConfig& c) const {
    return {ids.data(), c.max_tokens, c.top_k};
  }
};

/// Result of expert `e` for one element of a token: a number that bf16 rounds.
void run_expert(DType dtype, std::int32_t expert, const std::byte* from, std::byte* to) {
  oracle::encode(dtype, static_cast<double>(oracle::decode(dtype, from)) * (1.0 + expert / 64.0), to);
}

/// One whole step with `c.max_tokens` tokens, which may be fewer than the object's. Result: the combined tokens [T, H] in
/// bf16.
std::vector<std::byte> run_step(AllToAll& object, const AllToAllConfig& c, std::int32_t rank,
                                const Input& input) {
  auto sent =
      object.dispatch_send({.tokens = Rows(input.tokens.data(), c.max_tokens, c.hidden, c.token_dtype),
                            .weights = c.presum ? input.weights.data() : nullptr},
                           input.id_view(c));
  const Received received = object.dispatch_recv(std::move(sent));
  const MutableRows results = object.expert_output();
  const ExpertPartition partition{c.num_experts, static_cast<std::int32_t>(object.alive().size())};
  for (std::int32_t e = 0; e < partition.count(rank); ++e)
    for (std::int64_t row = received.starts[static_cast<std::size_t>(e)];
         row < received.starts[static_cast<std::size_t>(e)] + received.counts[static_cast<std::size_t>(e)];
         ++row)
      for (std::int64_t h = 0; h < c.hidden; ++h)
        run_expert(c.payload, partition.first(rank) + e,
                   static_cast<const std::byte*>(received.rows.row(row)) + 2 * h, results.row(row) + 2 * h);
  auto back = object.combine_send(Rows(results.data, received.starts.back(), c.hidden, c.expert_dtype));
  std::vector<std::byte> out(static_cast<std::size_t>(c.max_tokens * c.hidden * 2), std::byte{0x7f});
  object.combine_recv(std::move(back), {input.weights.data(), c.max_tokens, c.top_k},
                      {out.data(), c.max_tokens, c.hidden, c.out_dtype});
  return out;
}

std::vector<std::byte> run_step(AllToAll& object, std::int32_t rank, const Input& input) {
  return run_step(object, object.config(), rank, input);
}

/// Runs `body` on ranks that are spread over `nodes` nodes and reach only their own node's memory.
void on_nodes(std::int32_t ranks, std::int32_t nodes, const std::function<void(Transport&)>& body) {
  const auto outcomes = run_ranks({.ranks = ranks}, [&](Transport& transport) {
    const auto apart =
        make_delayed(transport, {.probability = 0.0, .hide_other_nodes = true, .nodes = nodes});
    body(*apart);
    return 0;
  });
  for (const auto& outcome : outcomes)
    EXPECT_EQ(outcome.exit_status, 0) << "rank " << outcome.rank << ": " << outcome.message;
}

TEST(CrossingsTest, LandsFlatAtTheOwnerAndHierarchicallyOnTheRail) {
  const std::vector<std::int32_t> homes = {0, 0, 1, 1, 1, 2};
  const Crossings flat(homes, 6, Path::flat);
  EXPECT_TRUE(flat.any());
  EXPECT_EQ(flat.landing(0, 4), 4);
  EXPECT_EQ(flat.destinations(0), (std::vector<std::int32_t>{2, 3, 4, 5}));
  EXPECT_EQ(flat.sources(5), (std::vector<std::int32_t>{0, 1, 2, 3, 4}));
  const Crossings rails(homes, 6, Path::automatic);
  EXPECT_TRUE(rails.hierarchical());
  EXPECT_EQ(rails.landing(1, 4), 3) << "place 1 of a home talks to place 1 of the other";
  EXPECT_EQ(rails.landing(4, 0), 0) << "place 2 wraps to place 0 of a home of two";
  EXPECT_EQ(rails.destinations(0), (std::vector<std::int32_t>{2, 5}));
  EXPECT_EQ(rails.sources(0), (std::vector<std::int32_t>{2, 4, 5}));
  EXPECT_EQ(rails.slot(4, 0), 1);
  EXPECT_EQ(rails.covered(3).size(), 3U);
  EXPECT_FALSE(Crossings({}, 6, Path::hierarchical).any());
}

TEST(CrossingsTest, LeavesLostRanksOut) {
  const std::vector<std::int32_t> homes = {0, 0, 1, 1};
  const std::vector<std::uint8_t> live = {1, 1, 0, 1};
  const Crossings rails(homes, 4, Path::hierarchical, live);
  EXPECT_EQ(rails.landing(0, 3), 3) << "the rail of the lost rank is taken over";
  EXPECT_EQ(rails.sources(3), (std::vector<std::int32_t>{0, 1}));
  const std::vector<std::uint8_t> one_home = {1, 1, 0, 0};
  EXPECT_FALSE(Crossings(homes, 4, Path::hierarchical, one_home).any());
}

struct Shape {
  std::int32_t ranks;
  std::int32_t nodes;
  Path path;
  std::int64_t hidden = kHidden;  ///< Long rows do not travel in one put with their message
};

class CrossingTest : public testing::TestWithParam<Shape> {};

TEST_P(CrossingTest, MovesTheBytesOfTheTokenMatrix) {
  const Shape shape = GetParam();
  on_nodes(shape.ranks, shape.nodes, [&](Transport& transport) {
    const World& world = transport.world();
    const AllToAllConfig config = bf16_config(shape.path, shape.hidden);
    AllToAll object(transport, config);
    const Input input(config, world.rank);
    static_cast<void>(run_step(object, world.rank, input));
    Traffic traffic;
    const ExpertPartition partition{config.num_experts, world.size};
    count_traffic(traffic, input.ids.data(), config.max_tokens, config.top_k, partition, world.rank,
                  world.nodes);
    const std::int64_t rows = shape.path == Path::flat ? traffic.other_ranks : traffic.other_nodes;
    const std::int64_t row_bytes = config.hidden * 2;
    expect(object.byte_counters().crossed_rows == rows * row_bytes,
           std::to_string(object.byte_counters().crossed_rows) + " bytes crossed, not " +
               std::to_string(rows * row_bytes));
    // Every result comes back: what this rank sends is what others chose here, counted over all ranks.
    std::int64_t returned = object.byte_counters().crossed_results;
    std::int64_t chosen = traffic.other_selections * row_bytes;
    std::vector<std::int64_t> sums(static_cast<std::size_t>(2 * world.size));
    const std::int64_t mine[2] = {returned, chosen};
    transport.make_collectives(1024, Clock::now() + std::chrono::seconds(20))
        ->allgather(mine, sizeof mine, sums.data(), std::chrono::seconds(20));
    returned = chosen = 0;
    for (std::size_t i = 0; i < sums.size(); i += 2) {
      returned += sums[i];
      chosen += sums[i + 1];
    }
    expect(returned == chosen, std::to_string(returned) + " bytes came back, not " + std::to_string(chosen));
    // And the closed form, from the experts of each other node (flat: of each other rank).
    std::vector<std::int64_t> groups;
    for (std::int32_t g = 0; g < (shape.path == Path::flat ? world.size : world.num_nodes()); ++g) {
      std::int64_t experts = 0;
      for (std::int32_t r = 0; r < world.size; ++r)
        if ((shape.path == Path::flat ? r : world.node_of(r)) == g && world.node_of(r) != world.node)
          experts += partition.count(r);
      groups.push_back(experts);
    }
    const double mean = expected_distinct_groups(config.num_experts, config.top_k, groups) * kTokens;
    const double sigma =
        std::sqrt(variance_distinct_groups(config.num_experts, config.top_k, groups) * kTokens);
    expect(std::fabs(static_cast<double>(rows) - mean) <= 3 * sigma + 1e-9,
           std::to_string(rows) + " rows, expected " + std::to_string(mean) + " +- " + std::to_string(sigma));
  });
}

/// The documented arithmetic of presum, one element at a time: partial sums where the experts are, each rounded once,
/// then the near rows in k order, then the partial sums in rank order of the landing ranks.
std::vector<std::byte> expected_presum(const AllToAllConfig& c, const World& world, const Input& input) {
  const ExpertPartition partition{c.num_experts, world.size};
  const Crossings crossings(world.nodes, world.size, c.path);
  std::vector<std::int32_t> landings = crossings.destinations(world.rank);
  std::sort(landings.begin(), landings.end());
  std::vector<std::byte> out(static_cast<std::size_t>(c.max_tokens * c.hidden * 2));
  for (std::int64_t i = 0; i < c.max_tokens * c.hidden; ++i) {
    const std::int64_t token = i / c.hidden;
    const std::byte* element = input.tokens.data() + 2 * i;
    const auto add = [&](float sum, std::int32_t k) {
      const auto at = static_cast<std::size_t>(token * c.top_k + k);
      std::byte result[2];
      run_expert(c.payload, input.ids[at], element, result);
      return std::fma(input.weights[at], oracle::decode(c.expert_dtype, result), sum);
    };
    const auto owner = [&](std::int32_t k) {
      return partition.owner(input.ids[static_cast<std::size_t>(token * c.top_k + k)]);
    };
    float sum = 0;
    for (std::int32_t k = 0; k < c.top_k; ++k)
      if (!crossings.crosses(world.rank, owner(k))) sum = add(sum, k);
    for (const std::int32_t landing : landings) {
      float partial = 0;
      bool any = false;
      for (std::int32_t k = 0; k < c.top_k; ++k) {
        if (!crossings.crosses(world.rank, owner(k)) || crossings.landing(world.rank, owner(k)) != landing)
          continue;
        partial = add(partial, k);
        any = true;
      }
      std::byte rounded[2];
      oracle::encode(c.expert_dtype, partial, rounded);
      if (any) sum = std::fma(1.0F, oracle::decode(c.expert_dtype, rounded), sum);
    }
    oracle::encode(c.out_dtype, sum, out.data() + 2 * i);
  }
  return out;
}

TEST_P(CrossingTest, SumsBeforeItCrossesWhereAskedTo) {
  const Shape shape = GetParam();
  on_nodes(shape.ranks, shape.nodes, [&](Transport& transport) {
    const World& world = transport.world();
    AllToAllConfig config = bf16_config(shape.path, shape.hidden);
    config.presum = true;
    config.check_messages = true;
    AllToAll object(transport, config);
    const Input input(config, world.rank);
    const std::vector<std::byte> expected = expected_presum(config, world, input);
    for (int step = 0; step < 2; ++step)
      expect(run_step(object, world.rank, input) == expected,
             "step " + std::to_string(step) + " gives other bits");
    // One row for each that crossed in dispatch, whoever sends it: compare over all ranks.
    const std::int64_t mine[2] = {object.byte_counters().crossed_rows,
                                  object.byte_counters().crossed_results};
    std::vector<std::int64_t> all(static_cast<std::size_t>(2 * world.size));
    transport.make_collectives(1024, Clock::now() + std::chrono::seconds(20))
        ->allgather(mine, sizeof mine, all.data(), std::chrono::seconds(20));
    std::int64_t there = 0;
    std::int64_t back = 0;
    for (std::size_t i = 0; i < all.size(); i += 2) {
      there += all[i];
      back += all[i + 1];
    }
    expect(there == back && there > 0,
           std::to_string(there) + " bytes there, " + std::to_string(back) + " back");
  });
}

/// The sum of a token's rows in k order, as on one node.
std::vector<std::byte> expected_sums(const AllToAllConfig& c, const Input& input) {
  std::vector<std::byte> out(static_cast<std::size_t>(c.max_tokens * c.hidden * 2));
  for (std::int64_t i = 0; i < c.max_tokens * c.hidden; ++i) {
    float sum = 0;
    for (std::int64_t k = i / c.hidden * c.top_k; k < (i / c.hidden + 1) * c.top_k; ++k) {
      std::byte result[2];
      run_expert(c.payload, input.ids[static_cast<std::size_t>(k)], input.tokens.data() + 2 * i, result);
      sum = std::fma(input.weights[static_cast<std::size_t>(k)], oracle::decode(c.expert_dtype, result), sum);
    }
    oracle::encode(c.out_dtype, sum, out.data() + 2 * i);
  }
  return out;
}

/// Messages of one put and of several, partial sums with and without checks, operations delayed and reordered.
TEST(CrossingShapesTest, KeepTheirBits) {
  Random dice(1);
  constexpr std::int64_t kWidths[] = {1, 7, 40, 131, 512, 1016, 3000};
  for (int run = 0; run < 12; ++run) {
    const auto ranks = 2 + static_cast<std::int32_t>(dice.below(5));
    const auto nodes = 2 + static_cast<std::int32_t>(dice.below(static_cast<std::uint64_t>(ranks - 1)));
    AllToAllConfig config =
        bf16_config(dice.below(2) == 0 ? Path::flat : Path::hierarchical, kWidths[dice.below(7)]);
    config.presum = run % 2 == 0;
    config.check_messages = dice.below(2) == 0;
    config.max_tokens = 1 + static_cast<std::int64_t>(dice.below(kTokens));
    config.num_experts = 5 + static_cast<std::int32_t>(dice.below(60));
    const std::uint64_t seed = dice.below(1'000'000);
    SCOPED_TRACE("run " + std::to_string(run) + ": " + std::to_string(ranks) + " ranks on " +
                 std::to_string(nodes) + " nodes, hidden " + std::to_string(config.hidden) +
                 (config.presum ? ", presum" : "") + (config.check_messages ? ", checked" : ""));
    const auto outcomes = run_ranks({.ranks = ranks}, [&](Transport& transport) {
      const auto apart = make_delayed(transport, {.seed = seed,
                                                  .max_delay = std::chrono::microseconds(100),
                                                  .probability = 0.4,
                                                  .reorder = true,
                                                  .hide_other_nodes = true,
                                                  .nodes = nodes});
      const World& world = apart->world();
      AllToAll object(*apart, config);
      Random own(seed, static_cast<std::uint64_t>(world.rank));
      for (std::int32_t step = 0; step < 4; ++step) {
        AllToAllConfig now = config;
        now.max_tokens =
            static_cast<std::int64_t>(own.below(static_cast<std::uint64_t>(config.max_tokens + 1)));
        const Input input(now, world.rank + 100 * step);
        expect(run_step(object, now, world.rank, input) ==
                   (now.presum ? expected_presum(now, world, input) : expected_sums(now, input)),
               "other bits in step " + std::to_string(step));
      }
      return 0;
    });
    for (const auto& outcome : outcomes)
      EXPECT_EQ(outcome.exit_status, 0) << "rank " << outcome.rank << ": " << outcome.message;
  }
}

/// Where in the first step damage begins, and what the ranks then say of rank 1.
struct Damage {
  bool truncate;
  bool in_combine;
};

class DamageTest : public testing::TestWithParam<Shape> {};

TEST_P(DamageTest, IsFound) {
  const Shape shape = GetParam();
  // Every operation with payload arrives wrong, on one rank: what it sends in its first step is found.
  for (const Damage damage :
       {Damage{false, false}, Damage{true, false}, Damage{false, true}, Damage{true, true}}) {
    const bool truncate = damage.truncate;
    const auto outcomes = run_ranks({.ranks = shape.ranks}, [&](Transport& transport) {
      FaultOptions faults{.seed = 3};
      if (transport.world().rank == 1) (truncate ? faults.truncate_probability : faults.flip_probability) = 1;
      AllToAllConfig config = bf16_config(shape.path, shape.hidden);
      config.check_messages = true;
      config.deadline = std::chrono::milliseconds(3000);
      const auto apart =
          make_delayed(transport, {.probability = 0.0, .hide_other_nodes = true, .nodes = shape.nodes});
      // Damage begins with the step: what the constructor exchanges has no checksum.
      {
        const auto counting = make_faulty(*apart, {});
        AllToAll made(*counting, config);
        if (damage.in_combine) {
          const Input input(config, transport.world().rank);
          auto sent = made.dispatch_send(
              {.tokens = Rows(input.tokens.data(), config.max_tokens, config.hidden, config.token_dtype)},
              input.id_view(config));
          static_cast<void>(made.dispatch_recv(std::move(sent)));
        }
        faults.skip_operations = counting->operations();
      }
      const auto damaged = make_faulty(*apart, faults);
      AllToAll object(*damaged, config);
      const Input input(config, transport.world().rank);
      static_cast<void>(run_step(object, transport.world().rank, input));
      return 0;
    });
    int found = 0;
    for (const auto& outcome : outcomes) {
      if (outcome.code != Errc::check_failed) continue;
      ++found;
      const char* what = damage.in_combine ? "the results from rank 1 arrived damaged"
                                           : "the message from rank 1 arrived damaged";
      EXPECT_NE(outcome.message.find(what), std::string::npos) << outcome.message;
    }
    EXPECT_GT(found, 0) << (truncate ? "truncated" : "flipped")
                        << (damage.in_combine ? " results" : " tokens");
    EXPECT_NE(combined_status(outcomes), 0);
  }
}

std::string shape_name(const testing::TestParamInfo<Shape>& info) {
  return std::to_string(info.param.ranks) + "RanksOn" + std::to_string(info.param.nodes) + "Nodes" +
         (info.param.path == Path::flat ? "Flat" : "Hierarchical") +
         (info.param.hidden == kHidden ? "" : "LongRows");
}

INSTANTIATE_TEST_SUITE_P(Shapes, CrossingTest,
                         testing::Values(Shape{2, 2, Path::flat}, Shape{4, 2, Path::flat},
                                         Shape{4, 2, Path::hierarchical}, Shape{5, 2, Path::hierarchical},
                                         Shape{6, 3, Path::hierarchical}, Shape{8, 4, Path::hierarchical},
                                         Shape{8, 8, Path::flat}, Shape{4, 2, Path::flat, 1016},
                                         Shape{6, 3, Path::hierarchical, 1016}),
                         shape_name);

INSTANTIATE_TEST_SUITE_P(Shapes, DamageTest,
                         testing::Values(Shape{2, 2, Path::flat}, Shape{4, 2, Path::flat},
                                         Shape{4, 2, Path::hierarchical}, Shape{6, 3, Path::hierarchical},
                                         Shape{4, 2, Path::flat, 1016},
                                         Shape{6, 3, Path::hierarchical, 1016}),
                         shape_name);

TEST(CrossingWorkspaceTest, IsWhatTheDocumentationSays) {
  // docs/architecture.md, "Memory of an AllToAll": E 30, K 5, H 40 in bf16, M 96, 6 ranks on 3 nodes of 2.
  const std::vector<std::int32_t> nodes = {0, 0, 1, 1, 2, 2};
  const auto page = [](std::int64_t bytes) { return round_up(bytes, 4096); };
  for (const Path path : {Path::flat, Path::hierarchical}) {
    for (const bool presum : {false, true}) {
      AllToAllConfig config = bf16_config(path);
      config.presum = presum;
      const std::int64_t row = kHidden * 2;
      const std::int64_t covered = path == Path::flat ? 1 : 2;
      const std::int64_t slots =
          4;  // flat: the 4 ranks elsewhere; hierarchical: one rail rank of each of 2 nodes
      const std::int64_t landings = path == Path::flat ? 4 : 2;
      const std::int64_t entries = kTokens * std::min<std::int64_t>(5, covered * 5);
      const std::int64_t head =
          round_up(round_up(32 + 4 * covered, 8) + 8 * entries + (presum ? 8 * entries : 0), 128);
      const std::int64_t slot = round_up(round_up(head + kTokens * row, 128), 128);
      const std::int64_t arriving = 6 * kTokens * 5;
      const std::int64_t out = kTokens * std::min<std::int64_t>(5, landings) * row + landings * head;
      const std::int64_t back = arriving * row + 16 * (path == Path::flat ? slots : 2);
      const std::int64_t ring = std::max({std::min(2 * std::max(out, back), std::int64_t{16} << 20), head,
                                          std::min(std::int64_t{64} << 10, slot)});
      const std::int64_t expected = page((path == Path::flat ? slots : 2) * slot) + page(7 * 8) +
                                    page(arriving * 4) + page(kTokens * 5 * row) + page(ring);
      EXPECT_EQ(workspace_size(config, 6, nodes).network, expected)
          << (path == Path::flat ? "flat" : "hierarchical");
      EXPECT_EQ(workspace_size(config, 6).network, 0);
    }
  }
  on_nodes(6, 3, [&](Transport& transport) {
    const AllToAllConfig config = bf16_config(Path::hierarchical);
    const AllToAll object(transport, config);
    expect(object.workspace_bytes() == workspace_size(config, 6, transport.world().nodes).total(),
           "sizes differ");
  });
}

TEST(CrossingConfigTest, RefusesPartialSumsWithoutWeightsOrWithReplicas) {
  on_nodes(2, 2, [](Transport& transport) {
    AllToAllConfig config = bf16_config(Path::flat);
    config.presum = true;
    AllToAll object(transport, config);
    const Input input(config, transport.world().rank);
    try {
      static_cast<void>(
          object.dispatch_send({.tokens = Rows(input.tokens.data(), kTokens, kHidden, config.token_dtype)},
                               input.id_view(config)));
      throw Error(Errc::check_failed, "presum without weights was accepted");
    } catch (const Error& error) {
      expect(error.code() == Errc::invalid_argument &&
                 std::string(error.what()).find("weights is null") != std::string::npos,
             error.what());
    }
    config.dp_size = 2;
    try {
      AllToAll refused(transport, config);
      throw Error(Errc::check_failed, "presum with replicas was accepted");
    } catch (const Error& error) {
      expect(error.code() == Errc::invalid_argument &&
                 std::string(error.what()).find("presum with dp_size 2") != std::string::npos,
             error.what());
    }
  });
}

}  // namespace
}  // namespace shunt
