// AllToAll between processes that share a GPU, which take turns on it. Skipped with the reason where there is none.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>

#include <gtest/gtest.h>

#include <shunt/core/error.h>
#include <shunt/transport/collectives.h>
#include <shunt/transport/launch.h>
#include <shunt/transport/transport.h>

#include "gpu_member.h"
#include "gpu_memory.h"
#include "network_namespace.h"

namespace gpu {
namespace {

constexpr int kNoGpu = 77;

/// Whether a GPU can be used. This process must not use CUDA, so a child looks.
bool has_gpu() {
  const auto looked =
      shunt::run_ranks({.ranks = 1}, [](shunt::Transport&) { return missing().empty() ? 0 : kNoGpu; });
  if (looked[0].exit_status == kNoGpu) return false;
  EXPECT_EQ(looked[0].exit_status, 0) << looked[0].message;
  return true;
}

TEST(AllToAllCudaGpuProcessesTest, ShareAGpu) {
  if (!has_gpu()) GTEST_SKIP() << "CUDA kernels cannot run here, see shunt doctor";
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

/// The kernels that put, from a rank to itself: what one GPU can show of them.
void put_to_oneself(const std::string& transport_name) {
  if (!has_gpu()) GTEST_SKIP() << "CUDA kernels cannot run here, see shunt doctor";
  // First, since the registry asks libfabric, and the libraries open sockets.
  const std::string& reason = shunt::testing_support::enter_network_namespace();
  if (!reason.empty()) GTEST_SKIP() << reason;
  for (const shunt::TransportInfo& info : shunt::transport_registry())
    if (info.name == transport_name && !info.available) GTEST_SKIP() << info.reason;
  constexpr int kNoNet = 78;
  const auto outcomes =
      shunt::run_ranks({.ranks = 1, .transport = transport_name}, [](shunt::Transport& transport) {
        setenv("SHUNT_PUT_KERNELS", "1", 1);
        std::unique_ptr<Member> member;
        try {
          member = std::make_unique<Member>(transport, 1, 5);
        } catch (const shunt::Error& error) {
          // NCCL has no one answer where there is no GIN.
          const bool no_gin = std::string(error.what()).find("ncclDevCommCreate") != std::string::npos;
          if (error.code() != shunt::Errc::unavailable && !no_gin) throw;
          std::fprintf(stderr, "%s\n", error.what());
          return kNoNet;
        }
        member->queue();
        member->finish();
        member->object(0).check();
        member->check_outputs();
        return 0;
      });
  if (outcomes[0].exit_status == kNoNet)
    GTEST_SKIP() << transport_name << " has no puts from kernels here, as said above";
  EXPECT_EQ(outcomes[0].exit_status, 0) << outcomes[0].message;
}

TEST(AllToAllCudaGpuProcessesTest, PutsToItselfByNvshmem) {
  put_to_oneself("nvshmem");
}

/// Towards the own rank it stores; GIN, which must be there for that, is asked for its communicator and signals alone.
TEST(AllToAllCudaGpuProcessesTest, PutsToItselfByNccl) {
  put_to_oneself("nccl");
}

}  // namespace
}  // namespace gpu
