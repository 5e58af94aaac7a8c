#include <shunt/plan/step_time.h>

#include <cmath>
#include <numeric>

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
  double sum = 0;
  for (const TimePart& part : time.parts) sum += part.exposed_us;
  EXPECT_NEAR(sum, time.step_us, 1e-6 * time.step_us);
  EXPECT_GT(time.exposed_us("bubble"), 0);
  EXPECT_GT(time.exposed_us("tensor_parallel"), 0);
  EXPECT_EQ(time.exposed_us("dispatch"), 0);
  EXPECT_EQ(time.exposed_us("no such part"), 0);
}

}  // namespace
}  // namespace shunt::plan
