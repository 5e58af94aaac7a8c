#include "choose.h"

#include <cstdlib>
#include <string_view>
#include <utility>

#include <fmt/format.h>

#include <shunt/core/child.h>
#include <shunt/core/error.h>
#include <shunt/pack/cuda.h>
#include <shunt/transport/launch.h>

#include "method.h"

namespace shunt::bench {
namespace {

constexpr std::chrono::seconds kAskLimit{60};

/// "" and the number of GPUs, or why there are none.
std::string ask_cuda() {
  return ask_in_child(
             [] {
               const std::string reason = cuda::unavailable_reason();
               return reason.empty() ? "ok " + std::to_string(gpu_count()) : reason;
             },
             kAskLimit)
      .value_or("the process that asked CUDA did not answer");
}

/// Whether no rank runs on another machine, as far as the environment says.
bool all_ranks_here(std::int32_t explicit_ranks) {
  const auto get = [](const char* name) -> const char* { return std::getenv(name); };
  const Launch launch = detect_launch(explicit_ranks, get);
  if (launch.way == LaunchWay::local) return true;
  if (launch.way != LaunchWay::mpi) return launch.local_size > 0 && launch.local_size == launch.world_size;
  for (const auto& [here, all] :
       {std::pair{"OMPI_COMM_WORLD_LOCAL_SIZE", "OMPI_COMM_WORLD_SIZE"}, {"MPI_LOCALNRANKS", "PMI_SIZE"}}) {
    const char* const local = get(here);
    const char* const size = get(all);
    if (local != nullptr && size != nullptr) return std::string_view(local) == size;
  }
  return false;
}

[[noreturn]] void refuse_device(const std::string& device) {
  throw Error(Errc::invalid_argument,
              fmt::format("--device: \"{}\" is not a device; allowed: auto, cpu, cuda", device));
}

}  // namespace

std::vector<MethodSpec> device_methods(const std::string& device) {
  if (device != "cpu" && device != "auto" && device != "cuda") refuse_device(device);
  if (device == "cpu") return alltoall_methods();
  const std::string answer = ask_cuda();
  const bool there = answer.starts_with("ok ");
  if (!there && device == "auto") return alltoall_methods();
  GpuRuntime runtime = cuda_runtime({});
  if (!there) runtime.unavailable = answer;
  return gpu_methods(runtime, {});
}

GpuTerms gpu_terms(const AllToAllBenchOptions& options) {
  return {
      .cold = options.cold, .graph = options.graph, .gate = options.gate, .max_blocks = options.max_blocks};
}

std::string choose_device(AllToAllBenchOptions& options) {
  if (options.device == "cpu") return {};
  if (options.device != "cuda" && options.device != "auto") refuse_device(options.device);
  const std::string answer = ask_cuda();
  if (!answer.starts_with("ok ")) {
    options.device = "cpu";
    return fmt::format("CUDA kernels cannot run here ({}), so this is the CPU", answer);
  }
  options.device = "cuda";
  options.own_clocks = true;
  const GpuTerms terms = gpu_terms(options);
  options.registry = gpu_methods(cuda_runtime(terms), terms);
  if (options.transport == "auto") options.transport = "cuda_ipc";
  // Processes take turns on a GPU, milliseconds each; threads share it.
  const std::int32_t ranks = options.ranks == 0 ? 2 : options.ranks;
  if (ranks > std::atoi(answer.c_str() + 3)) options.mode = RankMode::threads;
  // Streams beyond the default of 8 would share queues, where a rank's wait may stand before what its peer waits for.
  setenv("CUDA_DEVICE_MAX_CONNECTIONS", "32", 0);
  // A kernel loaded late waits for the device, where a rank's kernel may wait for its peer.
  setenv("CUDA_MODULE_LOADING", "EAGER", 0);
  // NCCL's bootstrap otherwise listens on an address that others reach. Here, since ranks may be threads later.
  if (all_ranks_here(options.ranks)) setenv("NCCL_SOCKET_IFNAME", "lo", 0);
  return {};
}

}  // namespace shunt::bench
