#include <shunt/plan/memory.h>

#include <cmath>

#include "models.h"

namespace shunt::plan {
namespace {

MemoryOptions training(std::int64_t tp, std::int64_t pp, std::int64_t ep, std::int64_t dp,
                       std::int64_t microbatches) {
  MemoryOptions options;
  options.layout.tp = tp;
  options.layout.pp = pp;
  options.layout.ep = ep;
  options.layout.dp = dp;
  options.training.microbatches = microbatches;
  return options;
}

// Figures that Megatron-LM's own script printed for these layouts.
TEST(MegatronEstimateTest, IsWhatItsScriptPrints) {
  const MemoryPlan mixtral = plan_memory(preset("mixtral-8x7b"), training(1, 4, 8, 16, 16));
  EXPECT_EQ(mixtral.layout.world(), 64);
  EXPECT_EQ(std::llround(mixtral.megatron.weights_optimizer_bytes), 20'063'312'640);
  EXPECT_EQ(std::llround(mixtral.megatron.activation_bytes), 17'247'109'120);
  EXPECT_NEAR(mixtral.megatron.most_loaded_parameters / 1e9, 1.8762, 5e-5);
  const MemoryPlan v3 = plan_memory(preset("r1"), training(1, 16, 64, 128, 120));
  EXPECT_EQ(v3.layout.world(), 2048);
  EXPECT_EQ(std::llround(v3.megatron.weights_optimizer_bytes), 19'123'486'218);
  EXPECT_EQ(std::llround(v3.megatron.activation_bytes), 51'129'090'048);
  EXPECT_NEAR(v3.megatron.most_loaded_parameters / 1e9, 2.5193, 5e-5);
  EXPECT_NEAR(v3.megatron.other_parameters / 1e9, 1.5926, 5e-5);
}

TEST(TrainingMemoryTest, HasTheStatesOfMegatronsMostLoadedGpu) {
  // 32 layers divide evenly, so its fractions of layers are ours too.
  const MemoryPlan plan = plan_memory(preset("mixtral-8x7b"), training(1, 4, 8, 16, 16));
  const StageMemory& first = plan.stages[0];
  EXPECT_NEAR(first.weights + first.expert_weights + first.gradients + first.optimizer, 20'063'312'640.0,
              2e5);
}

// Selene, arXiv 2205.05198: GPUs with 80 GB, microbatches of 2048 tokens.
struct Selene {
  std::int64_t layers, hidden, heads, tp, pp, chunks, micro_batch, microbatches;
  double states_gib, none_gib, selective_gib;
};

constexpr Selene kSelene[] = {
    {48, 6144, 64, 8, 1, 1, 4, 1, 45.5625, 59.25, 9.5625},
    {96, 12288, 96, 8, 8, 3, 1, 64, 45.5625, 66.84375, 12.3515625},
    {105, 20480, 128, 8, 35, 3, 1, 280, 31.640625, 114.0234375, 23.076171875},
    {128, 25600, 160, 8, 64, 1, 1, 512, 32.958984, 131.25, 26.5625},
};

TEST(TrainingMemoryTest, AgreesWithSelene) {
  for (const Selene& s : kSelene) {
    const ModelSpec model = gpt(s.layers, s.hidden, s.heads);
    MemoryOptions options = training(s.tp, s.pp, 1, 1, s.microbatches);
    TrainingOptions& t = options.training;
    t.micro_batch = s.micro_batch;
    t.sequence = 2048;
    t.zero = 0;
    t.dropout = true;
    t.flash_attention = false;
    t.chunks = s.chunks;
    if (s.chunks > 1) t.schedule = Schedule::interleaved;
    t.sequence_parallel = false;
    const StageMemory none = plan_memory(model, options).stages[0];
    t.sequence_parallel = true;
    t.recompute = Recompute::selective;
    const StageMemory selective = plan_memory(model, options).stages[0];
    // Those tables leave out what the embedding keeps: token ids and the mask of its dropout.
    const auto embedding = [&](const StageMemory& stage, std::int64_t ranks) {
      return stage.in_flight * 2048 * static_cast<double>(s.micro_batch * (8 + s.hidden / ranks));
    };
    EXPECT_NEAR((none.activations - embedding(none, 1)) / kGiB, s.none_gib, 1e-6) << s.hidden;
    EXPECT_NEAR((selective.activations - embedding(selective, s.tp)) / kGiB, s.selective_gib, 1e-6)
        << s.hidden;
    const double states = none.weights + none.gradients + none.optimizer;
    EXPECT_NEAR(states / kGiB, s.states_gib, 0.001 * s.states_gib) << s.hidden;
  }
}

TEST(TrainingMemoryTest, SchedulesKeepTheirMicrobatches) {
  const ModelSpec model = gpt(16, 64, 8);
  const auto in_flight = [&](Schedule schedule, std::int64_t pp, std::int64_t m, std::int64_t chunks) {
    MemoryOptions options = training(1, pp, 1, 1, m);
    options.training.schedule = schedule;
    options.training.chunks = chunks;
    std::vector<double> peaks;
    for (const StageMemory& stage : plan_memory(model, options).stages) peaks.push_back(stage.in_flight);
    return peaks;
  };
  using V = std::vector<double>;
  EXPECT_EQ(in_flight(Schedule::one_f_one_b, 4, 8, 1), (V{4, 3, 2, 1}));
  EXPECT_EQ(in_flight(Schedule::one_f_one_b, 4, 2, 1), (V{2, 2, 2, 1}));
  EXPECT_EQ(in_flight(Schedule::gpipe, 4, 8, 1), (V{8, 8, 8, 8}));
  EXPECT_EQ(in_flight(Schedule::interleaved, 4, 8, 2), (V{5.5, 4.5, 3.5, 2.5}));
  EXPECT_EQ(in_flight(Schedule::interleaved, 4, 8, 4), (V{4.75, 4.25, 3.75, 3.25}));
  EXPECT_EQ(in_flight(Schedule::zb_h1, 4, 8, 1), (V{4, 4, 4, 4}));
  EXPECT_EQ(in_flight(Schedule::zb_h2, 4, 12, 1), (V{7, 7, 7, 7}));
  EXPECT_EQ(in_flight(Schedule::dualpipe, 8, 20, 1), V(8, 9.0));
}

TEST(TrainingMemoryTest, DualPipeHoldsEveryStageTwice) {
  MemoryOptions options = training(1, 4, 1, 8, 8);
  const MemoryPlan single = plan_memory(gpt(16, 64, 8), options);
  options.training.schedule = Schedule::dualpipe;
  const MemoryPlan dual = plan_memory(gpt(16, 64, 8), options);
  EXPECT_EQ(dual.stages[1].parameters, 2 * single.stages[1].parameters);
  EXPECT_EQ(dual.stages[0].parameters, dual.stages[3].parameters);
  EXPECT_NEAR(dual.stages[1].optimizer, single.stages[1].optimizer, 24);
}

TEST(TrainingMemoryTest, ZeroDividesOneThingAfterTheOther) {
  const ModelSpec model = preset("mixtral-8x7b");
  MemoryOptions options = training(1, 4, 8, 16, 16);
  StageMemory stages[4];
  for (std::int64_t level = 0; level < 4; ++level) {
    options.training.zero = level;
    stages[level] = plan_memory(model, options).stages[1];
  }
  // Experts have 2 copies, the rest 16.
  const double experts = stages[0].expert_weights / 2;
  const double dense = stages[0].weights / 2;
  EXPECT_EQ(stages[0].optimizer, 12 * (experts + dense));
  EXPECT_NEAR(stages[1].optimizer, 12 * (experts / 2 + dense / 16), 24);
  EXPECT_EQ(stages[1].gradients, stages[0].gradients);
  EXPECT_NEAR(stages[2].gradients, 4 * (experts / 2 + dense / 16), 24);
  EXPECT_EQ(stages[2].weights, stages[0].weights);
  EXPECT_NEAR(stages[3].weights, 2 * dense / 16, 24);
  EXPECT_GT(stages[3].gathered_weights, 0);
}

TEST(TrainingMemoryTest, RecomputationKeepsLess) {
  const ModelSpec model = preset("r1");
  MemoryOptions options = training(1, 16, 64, 128, 120);
  const StageMemory none = plan_memory(model, options).stages[1];
  TrainingOptions& t = options.training;
  t.recompute = Recompute::selective;
  t.parts = {false, true, true, true, false, false};
  const StageMemory some = plan_memory(model, options).stages[1];
  t.parts.moe = true;
  const StageMemory more = plan_memory(model, options).stages[1];
  t.recompute = Recompute::full;
  const StageMemory full = plan_memory(model, options).stages[1];
  EXPECT_LT(some.activations, none.activations);
  EXPECT_LT(more.activations, some.activations);
  // What is left is one row of H in bf16 for each token, layer and microbatch in flight.
  EXPECT_EQ(full.activations, 15.0 * 4 * 4096 * 7168 * 2);
  EXPECT_EQ(full.router, 0);
  EXPECT_GT(full.temporary, none.temporary);
}

TEST(TrainingMemoryTest, CountsByHandAgree) {
  // One layer with experts, one GPU of two with ep 2: tokens 8, H 64, heads 8 of 8, kv heads 8, experts 4 of 32
  // columns, k 2.
  ModelSpec model = gpt(1, 64, 8);
  model.gated = true;
  model.experts = 4;
  model.top_k = 2;
  model.expert_intermediate = 32;
  model.layers[0].moe = true;
  MemoryOptions options = training(1, 1, 2, 2, 1);
  options.training.sequence = 8;
  options.training.imbalance = 1.5;
  const StageMemory memory = plan_memory(model, options).stages[0];
  const double row = 2 * 64;
  // Norm inputs and outputs, q, k, v, result, statistics of the softmax; then k * 1.5 rows and their columns.
  const double attention = 4 * row + 4 * row + 4 * 8;
  const double experts = 2 * 1.5 * (row + 3 * 2 * 32);
  EXPECT_DOUBLE_EQ(memory.activations, 8 * (attention + experts) + 8 * 8);
  EXPECT_DOUBLE_EQ(memory.router, 8 * (8 * 4 + 8 * 2));
  EXPECT_DOUBLE_EQ(memory.expert_weights, 2.0 * 2 * 3 * 64 * 32);
}

TEST(TrainingMemoryTest, MtpModulesLieOnTheLastStage) {
  const ModelSpec model = preset("r1");
  MemoryOptions options = training(1, 16, 64, 128, 120);
  const MemoryPlan without = plan_memory(model, options);
  options.training.mtp = true;
  const MemoryPlan with = plan_memory(model, options);
  // The module with a 64th of its experts, and a copy of the embedding.
  const double experts = 256.0 * 44'040'192;
  EXPECT_DOUBLE_EQ(with.stages[15].parameters - without.stages[15].parameters,
                   11'610'068'224.0 - experts + experts / 64 + 926'679'040.0);
  EXPECT_EQ(with.stages[14].parameters, without.stages[14].parameters);
}

TEST(TrainingMemoryTest, RefusesWhatDoesNotGoTogether) {
  const ModelSpec r1 = preset("r1");
  const auto refused = [&](MemoryOptions options, const std::string& message) {
    expect_refused(message, [&] { (void)plan_memory(r1, options); });
  };
  MemoryOptions o = training(1, 16, 1, 1, 8);
  o.training.schedule = Schedule::dualpipe;
  refused(o, "dualpipe needs an even number of microbatches, at least 32 for pp 16, not 8");
  o = training(1, 16, 1, 1, 8);
  o.training.chunks = 2;
  refused(o, "chunks 2: only the interleaved schedule has more than 1, this is 1f1b");
  o.training.schedule = Schedule::interleaved;
  refused(o, "the interleaved schedule needs microbatches that pp 16 divides, not 8");
  o.training.microbatches = 16;
  refused(o, "chunks 2 does not divide the 3 layers of a stage");
  o = training(1, 1, 1, 1, 1);
  o.training.zero = 4;
  refused(o, "zero 4: expected a number in [0, 3]");
  o = training(1, 1, 1, 1, 1);
  o.training.micro_batch = -1;
  refused(o, "micro batch -1: expected a number in [1, 65536]");
  o = training(1, 1, 1, 1, 1);
  o.training.imbalance = std::nan("");
  refused(o, "imbalance nan: expected a number in [1, 256]");
  o = training(4, 1, 1, 1, 1);
  o.training.sequence = 4095;
  refused(o, "tp 4 does not divide the 4095 tokens of a sequence on one rank, as sequence parallelism needs");
  o.training.sequence_parallel = false;
  refused(o, "tp 4 without sequence parallelism: every rank would send all tokens to the experts");
  o = training(1, 1, 32, 32, 1);
  o.layout.redundant_experts = 32;
  refused(o, "redundant experts are for serving; training has one copy per edp rank");
}

}  // namespace
}  // namespace shunt::plan
