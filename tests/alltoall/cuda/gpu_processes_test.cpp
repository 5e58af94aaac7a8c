// AllToAll between processes that share a GPU, which take turns on it. Skipped with the reason where there is none.
#include <chrono>

#include <gtest/gtest.h>

#include <shunt/transport/collectives.h>
#include <shunt/transport/launch.h>
#include <shunt/transport/transport.h>

#include "gpu_member.h"
#include "gpu_memory.h"

namespace gpu {
namespace {

constexpr int kNoGpu = 77;

TEST(AllToAllCudaGpuProcessesTest, ShareAGpu) {
  // This process must not use CUDA, so a child looks.
  const auto looked =
      shunt::run_ranks({.ranks = 1}, [](shunt::Transport&) { return missing().empty() ? 0 : kNoGpu; });
  if (looked[0].exit_status == kNoGpu) GTEST_SKIP() << "CUDA kernels cannot run here, see shunt doctor";
  ASSERT_EQ(looked[0].exit_status, 0) << looked[0].message;
  const auto outcomes = shunt::run_ranks(
      {.ranks = 2, .transport = "cuda_ipc", .devices = {0}}, [](shunt::Transport& transport) {
        Member member(transport, 1, 5);
        const auto collectives =
            transport.make_collectives(8, shunt::Clock::now() + std::chrono::seconds(60));
        member.queue();
        member.finish();
        member.object(0).check();
        member.check_outputs();
        collectives->barrier(std::chrono::seconds(60));
        return 0;
      });
  for (const auto& outcome : outcomes)
    EXPECT_EQ(outcome.exit_status, 0) << "rank " << outcome.rank << ": " << outcome.message;
}

}  // namespace
}  // namespace gpu
