// The kernels of src/pack/cuda on the emulator, against the CPU kernels.
#include <memory>

#include <shunt/core/error.h>

#include "case.h"
#include "emulator/launcher.h"
#include "pack/cuda/checks.h"
#include "pack/cuda/steps.h"

namespace shunt::test {
namespace {

/// The calls of <shunt/pack/cuda.h>, on the emulator.
class EmulatedDevice {
 public:
  EmulatedDevice(emulator::Machine& machine, std::int32_t rank) : launcher_(machine, rank) {}
  void make_plan(const cuda::PlanInput& input, const cuda::Plan& plan, void* workspace,
                 cuda::LaunchLimit limit) {
    cuda::detail::check(input, plan, workspace, limit);
    cuda::detail::make_plan(launcher_, input, plan, workspace, limit);
  }
  void gather(const cuda::Gather& gather, cuda::LaunchLimit limit) {
    cuda::detail::check(gather, limit);
    cuda::detail::gather(launcher_, gather, limit);
  }
  void scatter(const cuda::Scatter& scatter, cuda::LaunchLimit limit) {
    cuda::detail::check(scatter, limit);
    cuda::detail::scatter(launcher_, scatter, limit);
  }
  void combine(const cuda::Combine& combine, cuda::LaunchLimit limit) {
    cuda::detail::check(combine, limit);
    cuda::detail::combine(launcher_, combine, limit);
  }

 private:
  emulator::Launcher launcher_;
};

/// Cases [from, to) of the sweep. Neighbours run side by side as ranks of one machine.
void sweep(std::uint64_t from, std::uint64_t to) {
  for (std::uint64_t seed = from; seed < to;) {
    Random random(seed, 4004);
    const std::uint64_t ranks = std::min<std::uint64_t>(1 + random.below(3), to - seed);
    emulator::Machine machine({.seed = seed, .processors = 1 + static_cast<std::int32_t>(random.below(4))},
                              static_cast<std::int32_t>(ranks));
    std::vector<CudaCase> cases;
    std::vector<std::unique_ptr<CudaRun>> runs;
    for (std::uint64_t rank = 0; rank < ranks; ++rank, ++seed) {
      cases.push_back(draw_case(random));
      runs.push_back(std::make_unique<CudaRun>(cases.back(), random));
      EmulatedDevice device(machine, static_cast<std::int32_t>(rank));
      runs.back()->queue(device);
    }
    try {
      machine.run();
    } catch (const emulator::Fault& fault) {
      FAIL() << "seed " << seed - ranks << ": " << fault.what() << "\n  rank 0: " << describe(cases[0]);
    }
    for (std::size_t rank = 0; rank < runs.size(); ++rank)
      ASSERT_EQ(runs[rank]->difference(), "")
          << "seed " << seed - ranks << ", rank " << rank << ": " << describe(cases[rank]);
  }
}

// In parts, so that a failure names a short one to run again.
TEST(PackCudaSweepTest, GivesTheBitsOfTheCpuKernelsInCases0To150) {
  sweep(0, 150);
}
TEST(PackCudaSweepTest, GivesTheBitsOfTheCpuKernelsInCases150To300) {
  sweep(150, 300);
}
TEST(PackCudaSweepTest, GivesTheBitsOfTheCpuKernelsInCases300To450) {
  sweep(300, 450);
}

}  // namespace
}  // namespace shunt::test
