#include <shunt/plan/affinity.h>

#include <numeric>

#include "models.h"

namespace shunt::plan {
namespace {

Machine machine(const std::string& node, std::int64_t hosts, std::int64_t pod_gpus = 0,
                double oversubscription = 1) {
  return make_machine(find_node(node, "presets/hardware"), {hosts, oversubscription, pod_gpus});
}

TEST(TopologyTest, CountsHopsOnEveryTier) {
  const Machine dgx = machine("dgx-h100", 8, 32, 2);
  const auto path = [&](std::int64_t from, std::int64_t to) { return path_between(dgx, from, to); };
  EXPECT_EQ(path(3, 3).hops, 0);
  EXPECT_EQ(path(0, 7).by, "nvswitch");
  EXPECT_EQ(path(0, 7).hops, 2);
  EXPECT_EQ(path(1, 9).by, "rail");
  EXPECT_EQ(path(1, 9).hops, 4);
  // Another rail of the same pod: over NVLink to the GPU of the own host that is on it.
  EXPECT_EQ(path(0, 9).by, "nvlink + rail");
  EXPECT_EQ(path(0, 9).hops, 6);
  EXPECT_EQ(path(0, 9).steps,
            (std::vector<std::string>{"GPU 0", "NVSwitch", "GPU 1", "card 1 of host 0",
                                      "leaf switch of rail 1, pod 0", "card 1 of host 1", "GPU 9"}));
  EXPECT_EQ(path(0, 9).gb_per_s, dgx.network.gb_per_s);
  EXPECT_EQ(path(0, 32).by, "spine");
  EXPECT_EQ(path(0, 32).hops, 6);
  EXPECT_LE(path(0, 32).gb_per_s, dgx.network.gb_per_s);
  EXPECT_GT(path(0, 1).gb_per_s, 5 * path(1, 9).gb_per_s);
}

TEST(TopologyTest, KnowsRacksMeshesAndHostsWithoutFabric) {
  const Machine rack = machine("gb200-nvl72", 36);
  EXPECT_EQ(path_between(rack, 0, 71).by, "nvswitch");
  EXPECT_EQ(path_between(rack, 0, 72).by, "rail");
  EXPECT_EQ(place_of_rank(rack, 75).domain, 1);
  EXPECT_EQ(place_of_rank(rack, 75).rail, 3);
  const Machine mesh = machine("mi300x-8", 2);
  EXPECT_EQ(path_between(mesh, 0, 5).by, "xgmi");
  EXPECT_EQ(path_between(mesh, 0, 5).hops, 1);
  EXPECT_DOUBLE_EQ(path_between(mesh, 0, 5).gb_per_s, mesh.scale_up.gb_per_s / 7);
  const Machine pcie = machine("l40s-8", 2);
  EXPECT_EQ(path_between(pcie, 0, 7).by, "pcie");
  EXPECT_EQ(path_between(pcie, 0, 9).by, "spine");
  EXPECT_EQ(path_between(pcie, 0, 8).by, "rail");
}

TEST(TopologyTest, PathsAreTheSameBothWays) {
  for (const char* node : {"dgx-a100", "gb200-nvl72", "mi300x-8", "l40s-8"}) {
    const Machine m = machine(node, 4, 0);
    for (std::int64_t a = 0; a < m.gpus(); ++a)
      for (std::int64_t b = 0; b < m.gpus(); ++b) {
        const RankPath out = path_between(m, a, b);
        const RankPath back = path_between(m, b, a);
        ASSERT_EQ(out.hops, back.hops) << node << " " << a << " " << b;
        ASSERT_EQ(out.gb_per_s, back.gb_per_s);
        ASSERT_EQ(out.by, back.by);
      }
  }
}

TEST(TopologyTest, Refuses) {
  const Machine m = machine("dgx-h100", 2);
  expect_refused("rank 16: 2 hosts of 8 GPUs have ranks 0 to 15", [&] { (void)path_between(m, 0, 16); });
  TopologyOptions options;
  options.show = "hosp";
  expect_refused("--show \"hosp\": did you mean \"hops\"? Allowed are hops, gb_per_s, tier",
                 [&] { (void)report_topology(m, options); });
  options.show = "tier";
  options.from = 3;
  expect_refused("a path needs both --from and --to", [&] { (void)report_topology(m, options); });
}

/// Tokens that choose all their experts among those with the same remainder, which lie on different domains when experts
/// lie in order.
std::vector<Routing> clustered(std::int32_t ranks, std::int64_t tokens, std::int32_t experts,
                               std::int32_t clusters) {
  std::vector<Routing> all;
  for (std::int32_t rank = 0; rank < ranks; ++rank) {
    Routing routing;
    routing.num_tokens = tokens;
    routing.num_experts = experts;
    routing.top_k = experts / clusters;
    for (std::int64_t t = 0; t < tokens; ++t)
      for (std::int32_t k = 0; k < routing.top_k; ++k)
        routing.ids.push_back(static_cast<std::int32_t>((t + rank) % clusters) + k * clusters);
    all.push_back(std::move(routing));
  }
  return all;
}

ResidenceOptions options_for(std::int64_t ranks, std::int64_t experts) {
  ResidenceOptions options;
  options.shape = {experts, 1, 1, ranks};
  options.dispatch_row = 1000;
  options.combine_row = 2000;
  return options;
}

TEST(ResidenceTest, CountsRowsOfAPlacementByHand) {
  // Two hosts of eight; one token of rank 0 that wants experts 0 (own rank), 1 (rank 1), 9 and 10 (other host).
  const Machine m = machine("dgx-h100", 2);
  std::vector<Routing> tokens(16);
  for (Routing& routing : tokens) {
    routing.num_experts = 16;
    routing.top_k = 4;
  }
  tokens[0].num_tokens = 1;
  tokens[0].ids = {0, 1, 9, 10};
  ResidenceOptions options = options_for(16, 16);
  const ResidenceScore aligned = score_residence(m, tokens, place_linear(16, 16), options);
  // Over the network once, to rank 8, which passes it on to 9 and 10; and one row to rank 1.
  EXPECT_EQ(aligned.network_bytes, 3000);
  EXPECT_EQ(aligned.near_bytes, 9000);
  EXPECT_EQ(aligned.local_rows, 1);
  EXPECT_EQ(aligned.ranks_per_token, 4);
  EXPECT_EQ(aligned.domains_per_token, 2);
  EXPECT_EQ(aligned.load_max_over_mean, 4);
  options.path = ExchangePath::flat;
  const ResidenceScore flat = score_residence(m, tokens, place_linear(16, 16), options);
  EXPECT_EQ(flat.network_bytes, 6000);
  // Other rails: each crosses NVLink first.
  EXPECT_EQ(flat.near_bytes, 9000);
  options.path = ExchangePath::hierarchical;
  const ResidenceScore landing = score_residence(m, tokens, place_linear(16, 16), options);
  EXPECT_EQ(landing.network_bytes, 3000);
  EXPECT_EQ(landing.local_rows, 2);
}

TEST(ResidenceTest, AffinityFindsClusters) {
  const Machine m = machine("dgx-h100", 4);
  const std::vector<Routing> tokens = clustered(32, 64, 64, 4);
  const ResidenceOptions options = options_for(32, 64);
  const ResidenceScore linear = score_residence(m, tokens, place_linear(64, 32), options);
  const ResidenceScore found = score_residence(m, tokens, place_by_affinity(tokens, 32, 4, 1.1), options);
  EXPECT_EQ(linear.domains_per_token, 4);
  EXPECT_EQ(found.domains_per_token, 1);
  EXPECT_NEAR(found.network_bytes / linear.network_bytes, 0.25, 0.01);
  EXPECT_NEAR(found.load_max_over_mean, 1, 1e-9);
}

TEST(ResidenceTest, AffinityKeepsLoadsEvenAndPlacesEveryExpertOnce) {
  const Router router(parse_routing("powerlaw:0.3"), {64, 16, 64, 4}, 5);
  std::vector<Routing> tokens;
  for (std::int32_t rank = 0; rank < 16; ++rank) tokens.push_back(router.route(rank));
  const Placement placement = place_by_affinity(tokens, 16, 2, 1.1);
  std::vector<std::int32_t> experts = placement.experts;
  std::sort(experts.begin(), experts.end());
  std::vector<std::int32_t> all(64);
  std::iota(all.begin(), all.end(), 0);
  EXPECT_EQ(experts, all);
  EXPECT_EQ(placement.experts, place_by_affinity(tokens, 16, 2, 1.1).experts);
  const Machine m = machine("dgx-h100", 2);
  const ResidenceOptions options = options_for(16, 64);
  const ResidenceScore linear = score_residence(m, tokens, place_linear(64, 16), options);
  const ResidenceScore found = score_residence(m, tokens, placement, options);
  EXPECT_LE(found.network_bytes, linear.network_bytes);
  EXPECT_LT(found.load_max_over_mean, linear.load_max_over_mean);
}

TEST(ResidenceTest, CopiesNearTheTokenAreUsed) {
  const Machine m = machine("dgx-h100", 2);
  std::vector<Routing> tokens(16);
  for (Routing& routing : tokens) {
    routing.num_tokens = 1;
    routing.num_experts = 8;
    routing.top_k = 1;
    routing.ids = {0};
  }
  // Expert 0 on ranks 0 and 8, so that nobody needs the network.
  Placement placement{{0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 6, 7}, {}};
  for (std::int64_t rank = 0; rank <= 16; ++rank) placement.offsets.push_back(rank);
  EXPECT_EQ(score_residence(m, tokens, placement, options_for(16, 16)).network_bytes, 0);
}

TEST(ResidenceTest, ReportsEveryStrategyAndRefusesUnknownOnes) {
  const Machine m = machine("dgx-h100", 2);
  const std::vector<Routing> tokens = clustered(16, 8, 32, 4);
  ResidenceOptions options = options_for(16, 32);
  const Report report = report_residence(m, tokens, options);
  EXPECT_EQ(report.tables[0].rows.size(), 6U);
  EXPECT_EQ(std::get<std::string>(*report.head.find("best")), "affinity");
  EXPECT_FALSE(report.tables[1].rows.empty());
  options.strategies = {"afinity"};
  expect_refused(
      "strategy \"afinity\" does not exist; did you mean \"affinity\"? Allowed are linear, round_robin, "
      "hash, locality, "
      "latency_balanced, affinity",
      [&] { (void)report_residence(m, tokens, options); });
  options.strategies = {"affinity"};
  options.max_imbalance = 0.5;
  expect_refused("max imbalance 0.5: expected a number of at least 1",
                 [&] { (void)report_residence(m, tokens, options); });
  options = options_for(12, 32);
  expect_refused("12 ranks do not fill domains of 8 GPUs",
                 [&] { (void)report_residence(m, std::span(tokens).first(12), options); });
}

}  // namespace
}  // namespace shunt::plan
