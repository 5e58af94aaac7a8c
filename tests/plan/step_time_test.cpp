#include <shunt/plan/step_time.h>

#include <algorithm>
#include <cmath>
#include <tuple>

#include "models.h"

namespace shunt::plan {
namespace {

Machine machine(const std::string& node, std::int64_t hosts) {
  MachineOptions options;
  options.hosts = hosts;
  return make_machine(find_node(node, "presets/hardware"), options);
}

// Selene, arXiv 2205.05198 table 5: seconds of one step with everything recomputed and no sequence parallelism, and with
// selective recomputation and sequence parallelism. Configurations as its table 3.
struct Selene {
  const char* name;
  std::int64_t layers, hidden, heads, pp, chunks, micro_batch, microbatches;
  double full_s, selective_s;
};
constexpr Selene kSelene[] = {{"22B", 48, 6144, 64, 1, 1, 4, 1, 1.42, 1.10},
                              {"175B", 96, 12288, 96, 8, 3, 1, 64, 18.13, 13.75},
                              {"530B", 105, 20480, 128, 35, 3, 1, 280, 49.05, 37.83},
                              {"1T", 128, 25600, 160, 64, 1, 1, 512, 94.42, 71.49}};

StepTimeOptions selene_options(const Selene& s, bool selective) {
  StepTimeOptions o;
  o.layout.tp = 8;
  o.layout.pp = s.pp;
  o.training.micro_batch = s.micro_batch;
  o.training.microbatches = s.microbatches;
  o.training.sequence = 2048;
  o.training.zero = 0;
  o.training.flash_attention = false;
  o.training.dropout = true;
  if (s.chunks > 1) o.training.schedule = Schedule::interleaved;
  o.training.chunks = s.chunks;
  o.training.recompute = selective ? Recompute::selective : Recompute::full;
  o.training.sequence_parallel = selective;
  return o;
}

ModelSpec selene_model(const Selene& s) {
  ModelSpec model = gpt(s.layers, s.hidden, s.heads);
  model.vocab = 51200;
  model.tied_embeddings = true;
  return model;
}

TEST(StepTimeTest, AgreesWithSelene) {
  double sum = 0;
  for (const Selene& s : kSelene) {
    for (const bool selective : {false, true}) {
      const StepTime time =
          step_time(selene_model(s), machine("dgx-a100", s.pp), selene_options(s, selective));
      const double measured = selective ? s.selective_s : s.full_s;
      const double error = time.step_us * 1e-6 / measured - 1;
      sum += std::abs(error);
      EXPECT_LT(std::abs(error), 0.07) << s.name << (selective ? " selective" : " full") << ": "
                                       << time.step_us * 1e-6 << " s, measured " << measured << " s";
      RecordProperty(std::string(s.name) + (selective ? "_selective_s" : "_full_s"),
                     std::to_string(time.step_us * 1e-6));
    }
  }
  EXPECT_LE(sum / 8, 0.05);
}

TEST(StepTimeTest, PartsAddUpToTheStep) {
  const StepTime time =
      step_time(selene_model(kSelene[1]), machine("dgx-a100", 8), selene_options(kSelene[1], true));
  // From the stages: all microbatches of the busiest one, and a part for each chunk of the others.
  const auto busy = [](const StageTime& s) { return s.forward_us + s.backward_us + 2 * s.send_us; };
  double most = 0;
  double all = 0;
  for (const StageTime& stage : time.stages) {
    most = std::max(most, busy(stage));
    all += busy(stage);
  }
  EXPECT_NEAR(time.bubble_us, (all - most) / 3, 1e-6 * all);
  const double step =
      64 * most + time.bubble_us + time.exposed_us("gradient_sync") + time.exposed_us("optimizer");
  EXPECT_NEAR(step, time.step_us, 1e-6 * time.step_us);
  EXPECT_GT(time.exposed_us("bubble"), 0);
  EXPECT_GT(time.exposed_us("tensor_parallel"), 0);
  EXPECT_EQ(time.exposed_us("dispatch"), 0);
  EXPECT_EQ(time.exposed_us("no such part"), 0);
}

const CostModel& fits() {
  static const Calibration calibration = read_calibration("presets/fits/measured.toml");
  static const CostModel model(calibration, "presets/hardware");
  return model;
}

StepTimeOptions serving(const ModelSpec& model, const Machine& h800, Phase phase) {
  StepTimeOptions o;
  o.phase = phase;
  use_published_formats(model, h800, o);
  o.two_batches = true;
  return o;
}

// open-infra-index day 6: 9212 tokens/s on each GPU (cache hits among them), 32 redundant experts, H800.
TEST(StepTimeTest, PrefillOfDeepSeekIsNearItsDeployment) {
  const ModelSpec r1 = preset("r1");
  const Machine h800 = machine("hgx-h800", 4);
  StepTimeOptions o = serving(r1, h800, Phase::prefill);
  o.layout.ep = o.layout.dp = 32;
  o.layout.redundant_experts = 32;
  const StepTime time = step_time(r1, h800, o, &fits());
  EXPECT_NEAR(time.tokens_per_s_per_gpu / 9212, 1, 0.3);
  EXPECT_EQ(time.path, ExchangePath::rail_aligned);
  EXPECT_GT(time.hidden_communication_us, time.exposed_communication_us);
  EXPECT_NEAR(time.ttft_ms, 16384 / time.tokens_per_s_per_gpu * 1e3, 1e-6 * time.ttft_ms);
}

// The same source: 20 to 22 tokens/s for a user at 1850 on each GPU, so 88 sequences, mean cache 4989 tokens.
TEST(StepTimeTest, DecodeOfDeepSeekIsNearItsDeployment) {
  const ModelSpec r1 = preset("r1");
  StepTimeOptions o = serving(r1, machine("hgx-h800", 18), Phase::decode);
  o.layout.ep = o.layout.dp = 144;
  o.layout.redundant_experts = 32;
  o.sequences = 88;
  o.context = 4989;
  const StepTime time = step_time(r1, machine("hgx-h800", 18), o, &fits());
  EXPECT_NEAR(time.tokens_per_s_per_user / 21, 1, 0.4);
  EXPECT_NEAR(time.tpot_ms * time.tokens_per_s_per_user, 1000, 1e-9);
  EXPECT_NEAR(time.tokens_per_s_per_gpu, 88 * time.tokens_per_s_per_user, 1e-6 * time.tokens_per_s_per_gpu);
  // What the V3 report plans: 40 nodes, TP4, one expert on a GPU.
  StepTimeOptions wide = serving(r1, machine("hgx-h800", 40), Phase::decode);
  wide.layout.tp = 4;
  wide.layout.dp = 80;
  wide.layout.ep = 320;
  wide.layout.redundant_experts = 64;
  wide.sequences = 256;
  const StepTime report = step_time(r1, machine("hgx-h800", 40), wide, &fits());
  EXPECT_GT(report.exposed_us("tensor_parallel"), 0);
  EXPECT_LT(report.exposed_us("expert_gemm"), time.exposed_us("expert_gemm"));
  EXPECT_NEAR(report.tokens_per_s_per_gpu, 64 * report.tokens_per_s_per_user,
              1e-6 * report.tokens_per_s_per_gpu);
  // MLA's vector is whole on all four GPUs: they read what one with as many sequences reads.
  wide.layout.tp = 1;
  wide.layout.dp = 320;
  const StepTime alone = step_time(r1, machine("hgx-h800", 40), wide, &fits());
  EXPECT_GT(4 * report.exposed_us("attention"), 1.2 * alone.exposed_us("attention"));
}

// Kernels that a group cannot use do not price it, and memory, which is asked with the same kernels, has none of theirs.
TEST(StepTimeTest, PricesOnlyByKernelsThatServe) {
  const ModelSpec r1 = preset("r1");
  const Machine h800 = machine("hgx-h800", 4);
  StepTimeOptions o = serving(r1, h800, Phase::decode);
  o.layout.ep = o.layout.dp = 32;
  EXPECT_EQ(step_time(r1, h800, o, &fits()).kernels, ExchangeKernels::low_latency);
  o.sequences = 2 * 1024 + 2;
  const StepTime many = step_time(r1, h800, o, &fits());
  EXPECT_EQ(many.kernels, ExchangeKernels::tiers);
  ASSERT_EQ(many.notes.size(), 1U);
  EXPECT_EQ(
      many.notes[0],
      "dispatch and combine are priced by tiers: low_latency does not serve: 1025 tokens of a rank; its "
      "buffers are meant for fewer than 256, at most 1024 here");
  o.kernels = ExchangeKernels::low_latency;
  expect_refused(
      "exchange kernels low_latency: 1025 tokens of a rank; its buffers are meant for fewer than 256, at "
      "most "
      "1024 here",
      [&] { (void)step_time(r1, h800, o, &fits()); });
  const Machine amd = machine("mi300x-8", 1);
  StepTimeOptions xgmi = serving(r1, amd, Phase::decode);
  xgmi.layout.ep = xgmi.layout.dp = 8;
  EXPECT_EQ(step_time(r1, amd, xgmi, &fits()).exchange_source, "tiers");
}

// A token's limit to 4 of 8 groups holds with copies of experts too, where the nodes divide the groups.
TEST(StepTimeTest, KeepsTheLimitOfGroupsWithRedundantExperts) {
  ModelSpec r1 = preset("r1");
  const Machine h800 = machine("hgx-h800", 8);
  StepTimeOptions o = serving(r1, h800, Phase::prefill);
  o.layout.ep = o.layout.dp = 64;
  o.layout.redundant_experts = 64;
  const auto exchange = [&] {
    const StepTime time = step_time(r1, h800, o, &fits());
    for (const TimePart& part : time.parts)
      if (part.name == "dispatch") return part.us;
    return 0.0;
  };
  const double with = exchange();
  r1.top_groups = r1.expert_groups;
  EXPECT_LT(with, 0.9 * exchange());
}

TEST(StepTimeTest, CopiesOfExpertsEvenLoadsOut) {
  const ModelSpec r1 = preset("r1");
  const Machine h800 = machine("hgx-h800", 4);
  StepTimeOptions o = serving(r1, h800, Phase::decode);
  o.layout.ep = o.layout.dp = 32;
  o.expert_loads.assign(256, 1);
  o.expert_loads[0] = 4000;  // One expert has nearly everything
  double last = 1e9;
  for (const std::int64_t copies : {0, 32, 64, 96}) {
    o.layout.redundant_experts = copies;
    const double imbalance = step_time(r1, h800, o, &fits()).imbalance;
    EXPECT_LT(imbalance, last) << copies;
    EXPECT_GE(imbalance, 1);
    last = imbalance;
  }
}

TEST(StepTimeTest, HidesNoMoreThanThereIsComputation) {
  const ModelSpec mixtral = preset("mixtral-8x7b");
  const Machine m = machine("dgx-h100", 4);
  StepTimeOptions o;
  o.layout.dp = 32;
  o.layout.ep = 8;
  o.training.zero = 3;
  o.training.sequence = 64;  // Little to compute for all these weights
  o.overlap_gradients = 1;
  const StepTime time = step_time(mixtral, m, o, &fits());
  double compute = 0;
  for (const TimePart& part : time.parts)
    if (part.tier == "compute" && part.name != "bubble") compute += part.us;
  EXPECT_GT(time.hidden_communication_us, 0);
  EXPECT_LE(time.hidden_communication_us, compute * (1 + 1e-9));
  EXPECT_GT(time.exposed_us("weight_gather"), 0);
}

TEST(StepTimeTest, UtilizationIsOfTheFasterType) {
  const ModelSpec mixtral = preset("mixtral-8x7b");
  const Machine m = machine("dgx-h100", 1);
  StepTimeOptions o;
  o.layout.dp = 8;
  o.training.micro_batch = 8;
  o.expert_math = MathType::fp8;
  o.efficiency.matrix = o.efficiency.grouped_matrix = 1;
  const StepTime time = step_time(mixtral, m, o);
  EXPECT_EQ(time.peak_type, MathType::fp8);
  EXPECT_GT(time.model_flops_utilization, 0.3);
  EXPECT_LE(time.model_flops_utilization, 1);
}

TEST(StepTimeTest, DecodeHalvesNoSingleSequence) {
  const ModelSpec r1 = preset("r1");
  const Machine h800 = machine("hgx-h800", 4);
  StepTimeOptions o = serving(r1, h800, Phase::decode);
  o.layout.ep = o.layout.dp = 16;
  o.layout.pp = 2;
  o.sequences = 3;
  expect_refused("sequences 3: two batches on pp 2 need at least 4, one for each half on every stage",
                 [&] { (void)step_time(r1, h800, o, &fits()); });
  o.sequences = 4;
  EXPECT_GT(step_time(r1, h800, o, &fits()).tpot_ms, 0);
}

// arXiv 2505.09343, section 2.3.2: 32 tokens, 9 rows of 7000 elements, 1 byte there and 2 back over 50 GB/s, twice (two
// microbatches) in 61 layers: 120.96 us, 14.76 ms and 67 tokens/s; 6.72 us, 0.82 ms, some 1200 tokens/s at 900 GB/s.
TEST(StepTimeTest, RepeatsTheArithmeticOfInsights) {
  ModelSpec model = preset("r1");
  model.hidden = 7000;
  model.top_k = 9;
  model.experts = 320;
  model.expert_groups = model.top_groups = 1;
  for (LayerSpec& layer : model.layers) layer.moe = true;
  for (const auto& [rate, layer_us, tpot_ms] :
       {std::tuple<double, double, double>{50, 120.96, 14.76}, {900, 6.72, 0.82}}) {
    // One GPU on each host, so that all rows leave (1 of 320 stays), and computation that takes no time.
    Machine m = machine("hgx-h800", 40);
    m.node.gpus = m.node.domain_gpus = 1;
    m.hosts = 320;
    m.network = {rate, 0};
    m.spine = m.network;
    m.message_us = m.launch_us = 0;
    m.hbm.gb_per_s = 1e9;
    m.node.gpu.bf16_tflops = m.node.gpu.fp8_tflops = 1e9;
    StepTimeOptions o;
    o.phase = Phase::decode;
    o.layout.dp = o.layout.ep = 320;
    o.sequences = 64;
    o.two_batches = true;
    o.dispatch_payload = "fp8";
    o.kernels = ExchangeKernels::tiers;
    o.path = ExchangePath::flat;
    const StepTime time = step_time(model, m, o);
    EXPECT_NEAR(time.tpot_ms, tpot_ms, 0.01 * tpot_ms);
    EXPECT_NEAR(time.tpot_ms * 1e3 / 2 / 61, layer_us, 0.01 * layer_us);
  }
}

// DeepSeek-V3 report: 180 K H800 hours for 1 T tokens on 2048 GPUs, PP16 EP64, DualPipe, fp8.
TEST(StepTimeTest, TrainingOfDeepSeekIsNearItsReport) {
  const ModelSpec r1 = preset("r1");
  StepTimeOptions o;
  o.layout.pp = 16;
  o.layout.dp = 128;
  o.layout.ep = 64;
  o.training.microbatches = 120;
  o.training.schedule = Schedule::dualpipe;
  o.training.recompute = Recompute::selective;
  o.training.parts = {false, true, true, true};
  o.training.mtp = true;
  o.two_batches = true;
  o.math = o.expert_math = MathType::fp8;
  o.overlap_pipeline = o.overlap_gradients = 1;
  o.exchange_sms = 20;
  const StepTime time = step_time(r1, machine("hgx-h800", 256), o, &fits());
  EXPECT_NEAR(time.tokens_per_s_per_gpu / (1e12 / 180e3 / 3600), 1, 0.5);
  EXPECT_GT(time.exposed_us("recompute"), 0);
  EXPECT_EQ(time.exposed_us("pipeline_transfer"), 0);
}

TEST(StepTimeTest, TakesLongerForMore) {
  const ModelSpec mixtral = preset("mixtral-8x7b");
  const Machine m = machine("dgx-h100", 4);
  StepTimeOptions o;
  o.layout.dp = 32;
  o.layout.ep = 8;
  const StepTime base = step_time(mixtral, m, o, &fits());
  StepTimeOptions skewed = o;
  skewed.training.imbalance = 2;
  EXPECT_GT(step_time(mixtral, m, skewed, &fits()).step_us, base.step_us);
  // A recorded load in which one rank has half of everything: eight ranks with one expert each.
  StepTimeOptions recorded = o;
  recorded.expert_loads = {7, 1, 1, 1, 1, 1, 1, 1};
  const StepTime uneven = step_time(mixtral, m, recorded, &fits());
  EXPECT_DOUBLE_EQ(uneven.imbalance, 4);
  EXPECT_GT(uneven.step_us, base.step_us);
  StepTimeOptions law = o;
  law.power_law = 1.01;
  EXPECT_GT(step_time(mixtral, m, law, &fits()).imbalance, 1);
  StepTimeOptions recomputed = o;
  recomputed.training.recompute = Recompute::full;
  const StepTime full = step_time(mixtral, m, recomputed, &fits());
  EXPECT_GT(full.step_us, base.step_us);
  EXPECT_LT(full.model_flops_utilization, base.model_flops_utilization);
  StepTimeOptions hidden = o;
  hidden.two_batches = true;
  EXPECT_LT(step_time(mixtral, m, hidden, &fits()).step_us, base.step_us);
  StepTimeOptions sharded = o;
  sharded.training.zero = 3;
  EXPECT_GT(step_time(mixtral, m, sharded, &fits()).exposed_us("weight_gather"), 0);
}

TEST(StepTimeTest, SpeculationGivesMoreTokensOfEachStep) {
  const ModelSpec r1 = preset("r1");
  const Machine h800 = machine("hgx-h800", 18);
  StepTimeOptions o = serving(r1, h800, Phase::decode);
  o.layout.ep = o.layout.dp = 144;
  o.layout.redundant_experts = 32;
  o.sequences = 8;
  const StepTime plain = step_time(r1, h800, o, &fits());
  o.drafts = 1;
  o.acceptance = 0.85;
  const StepTime drafted = step_time(r1, h800, o, &fits());
  EXPECT_GT(drafted.step_us, plain.step_us);
  EXPECT_LT(drafted.tpot_ms, plain.tpot_ms);
  EXPECT_NEAR(drafted.step_us * 1e-3 / drafted.tpot_ms, 1.85, 1e-9);
}

TEST(StepTimeTest, PricesADomainOfManyHostsByItsKernels) {
  const ModelSpec r1 = preset("r1");
  const Machine rack = machine("gb200-nvl72", 18);
  StepTimeOptions o;
  o.phase = Phase::decode;
  use_published_formats(r1, rack, o);
  o.layout.ep = o.layout.dp = 64;
  const StepTime time = step_time(r1, rack, o, &fits());
  EXPECT_NE(time.exchange_source.find("trtllm_nvlink_alltoall"), std::string::npos) << time.exchange_source;
  o.kernels = ExchangeKernels::tiers;
  EXPECT_EQ(step_time(r1, rack, o, &fits()).exchange_source, "tiers");
}

TEST(StepTimeTest, RefusesWhatCannotBe) {
  const ModelSpec mixtral = preset("mixtral-8x7b");
  const Machine m = machine("dgx-h100", 1);
  StepTimeOptions o;
  o.layout.dp = 16;
  expect_refused("tp 1 * cp 1 * dp 16 * pp 1 = 16 GPUs; 1 hosts of dgx-h100 have 8",
                 [&] { (void)step_time(mixtral, m, o); });
  o.layout.dp = 8;
  o.layout.ep = 3;
  expect_refused(
      "ep 3 does not divide the 8 experts of mixtral-8x7b; 1 redundant experts would make it 3 on each",
      [&] { (void)step_time(mixtral, m, o); });
  o.layout.ep = 8;
  o.kernels = ExchangeKernels::normal;
  expect_refused(
      "exchange kernels normal: they are priced by a fit, and none is loaded; allowed without are automatic "
      "and "
      "tiers",
      [&] { (void)step_time(mixtral, m, o); });
  o.kernels = ExchangeKernels::automatic;
  o.training.imbalance = 0.5;
  expect_refused("imbalance 0.5: expected a number in [1, 8]", [&] { (void)step_time(mixtral, m, o); });
  o.training.imbalance = 1;
  o.expert_loads = {1, 2, 3};
  expect_refused("3 expert loads: mixtral-8x7b has 8 experts", [&] { (void)step_time(mixtral, m, o); });
  o.expert_loads.clear();
  o.overlap_gradients = std::nan("");
  expect_refused("overlap of gradients nan: expected a number in [0, 1]",
                 [&] { (void)step_time(mixtral, m, o); });
  o.overlap_gradients = 0;
  o.efficiency.matrix = 2;
  expect_refused("matrix efficiency 2: expected a share in [0.01, 1]",
                 [&] { (void)step_time(mixtral, m, o); });
  o.efficiency.matrix = 0.75;
  o.phase = Phase::prefill;
  o.batch_tokens = 5000;
  expect_refused("batch tokens 5000: expected a multiple of the 4096 new tokens of a prompt",
                 [&] { (void)step_time(mixtral, m, o); });
  o.phase = Phase::decode;
  o.acceptance = -1;
  expect_refused("acceptance -1: expected a number in [0, 1]", [&] { (void)step_time(mixtral, m, o); });
  o.acceptance = 0.5;
  expect_refused("acceptance 0.5: there are no drafts to accept", [&] { (void)step_time(mixtral, m, o); });
  o.acceptance = 0;
  o.dispatch_payload = "fp9";
  EXPECT_THROW((void)step_time(mixtral, m, o), Error);
}

}  // namespace
}  // namespace shunt::plan
