// The cases of the randomised sweep (alltoall/sweep_case.h) through the kernels for GPUs, on the emulator: bit for bit what
// the reference says, as the CPU's sweep requires it of the CPU. A case queues all its steps on all ranks before anything
// runs, so ranks drift apart as far as the protocol lets them; half of the cases use a net that only puts, late and in any
// order.
//
// Environment:
//   SHUNT_GPU_SWEEP_CASES  number of cases, default 304; `make test` runs 120, test-deep 100 under AddressSanitizer
//   SHUNT_SWEEP_CASE       run this one case only, as a failure's message says
#include <cstdlib>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <alltoall/sweep_case.h>
#include <shunt/core/error.h>

#include "emulated.h"
#include "rank_run.h"
#include "step_run.h"

namespace gpu {
namespace {

/// All steps, object by object in a random order that is the same on all ranks. What is queued runs after a void step, whose
/// error would hide a later one's, and at the end.
void drive(const sweep::SweepCase& what, std::vector<World>& worlds, shunt::emulator::Machine& machine) {
  shunt::Random order(what.seed, 2);
  const auto run = [&] {
    machine.run();
    for (World& world : worlds)
      for (auto& rank : world.ranks) rank->check();
  };
  for (;;) {
    std::vector<std::size_t> unfinished;
    for (std::size_t i = 0; i < worlds.size(); ++i)
      if (worlds[i].step < what.objects[i].steps.size()) unfinished.push_back(i);
    if (unfinished.empty()) return run();
    const std::size_t i = unfinished[order.below(unfinished.size())];
    World& world = worlds[i];
    const sweep::StepPlan& step = what.objects[i].steps[world.step];
    if (world.phase == 0) world.references.emplace_back(sweep::make_step(what.objects[i], step));
    for (auto& rank : world.ranks) rank->advance(step, world.references.back());
    world.phase = (world.phase + 1) % 4;
    if (world.phase != 0) continue;
    ++world.step;
    bool all_between = true;
    for (const World& other : worlds) all_between = all_between && other.phase == 0;
    if (step.outcome == sweep::Outcome::overflow && all_between) run();
  }
}

void run_case(const sweep::SweepCase& what) {
  shunt::Random dice(what.seed, 505);
  shunt::emulator::Machine machine(
      {.seed = what.seed, .processors = 1 + static_cast<std::int32_t>(dice.below(3)), .step_ns = 1},
      what.num_ranks);
  std::vector<World> worlds(what.objects.size());
  std::vector<shunt::cuda::AllToAllOptions> options;
  for (World& world : worlds) {
    world.ranks.resize(static_cast<std::size_t>(what.num_ranks));
    if (dice.below(2) == 0)
      world.postman = std::make_unique<Postman>(what.seed, what.num_ranks, 1 + dice.below(4));
    options.push_back(
        {.limit = {static_cast<std::int32_t>(dice.below(4))}, .expert_output = dice.below(4) != 0});
  }
  run_phases(what.num_ranks, {{.each =
                                   [&](std::int32_t rank, shunt::Transport& transport) {
                                     for (std::size_t i = 0; i < worlds.size(); ++i)
                                       worlds[i].ranks[static_cast<std::size_t>(rank)] =
                                           std::make_unique<RankRun>(
                                               transport, what.objects[i], options[i],
                                               make_engine(machine, rank, worlds[i].postman.get()), machine);
                                   },
                               .alone = {}},
                              {.each = {}, .alone = [&] { drive(what, worlds, machine); }},
                              {.each =
                                   [&](std::int32_t rank, shunt::Transport&) {
                                     for (World& world : worlds)
                                       world.ranks[static_cast<std::size_t>(rank)].reset();
                                   },
                               .alone = {},
                               .always = true}});
}

std::uint64_t number_from(const char* name, std::uint64_t otherwise) {
  const char* text = std::getenv(name);
  return text == nullptr ? otherwise : std::strtoull(text, nullptr, 10);
}

/// Most cases of many ranks in a short form: threads cost the emulator their start.
sweep::SweepCase case_here(std::uint64_t seed) {
  sweep::SweepCase what = make_gpu_case(seed);
  if (what.num_ranks <= 4 || seed % 3 == 0) return what;
  what.objects.erase(what.objects.begin() + 1, what.objects.end());
  auto& steps = what.objects[0].steps;
  if (steps.size() > 2) steps.erase(steps.begin() + 2, steps.end());
  return what;
}

/// Every fourth of the cases, from `part` on, so that a failure names a short test to run again.
void sweep_part(std::uint64_t part) {
  const std::uint64_t single = number_from("SHUNT_SWEEP_CASE", 0);
  const std::uint64_t cases = number_from("SHUNT_GPU_SWEEP_CASES", 304);
  for (std::uint64_t i = part; i < cases; i += 4) {
    // Ranks of a case follow from its seed modulo 8: every part gets all numbers of ranks.
    const std::uint64_t seed = single != 0 ? single : 4'000'000 + i / 4 + part * 1'000'000;
    try {
      run_case(case_here(seed));
    } catch (const std::exception& error) {
      FAIL() << "case " << seed << " (" << sweep::describe(case_here(seed).objects[0])
             << "): " << error.what() << "; rerun with SHUNT_SWEEP_CASE=" << seed;
    }
    if (single != 0) return;
  }
}

TEST(AllToAllGpuSweepTest, EqualsTheReferenceByBitsInThe1stQuarterOfTheCases) {
  sweep_part(0);
}
TEST(AllToAllGpuSweepTest, EqualsTheReferenceByBitsInThe2ndQuarterOfTheCases) {
  sweep_part(1);
}
TEST(AllToAllGpuSweepTest, EqualsTheReferenceByBitsInThe3rdQuarterOfTheCases) {
  sweep_part(2);
}
TEST(AllToAllGpuSweepTest, EqualsTheReferenceByBitsInThe4thQuarterOfTheCases) {
  sweep_part(3);
}

}  // namespace
}  // namespace gpu
