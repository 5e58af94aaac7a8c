#include "open_transport.h"

#include <cstdlib>

#include <fmt/format.h>

#include <shunt/core/error.h>

#include "cuda_ipc/cuda_api.h"
#include "cuda_ipc/device_transport.h"
#include "heap/plugin.h"
#include "net/hybrid_transport.h"
#include "net/networks.h"
#include "shm/shm_transport.h"

namespace shunt {
namespace {

constexpr const char* kCudaIpc = "cuda_ipc";

}  // namespace

std::string resolve_transport(const std::string& name, LaunchWay way, std::int32_t nodes) {
  if (name != "auto") return name;
  if (nodes == 1) return "shm";
  return way == LaunchWay::mpi ? "mpi" : "ofi";
}

void check_transport(const std::string& name, LaunchWay way, std::int32_t nodes) {
  // Not the registry: describing libfabric would initialise it in a process that is about to fork.
  std::string missing;
  if (name == "shm") {
    missing = shm::Segment::unavailable_reason();
  } else if (name == "mpi") {
    missing = mpi_unavailable_reason();
  } else if (name == "ofi") {
    missing = ofi_unavailable_reason();
  } else if (name == kCudaIpc) {
    // In a child: a process that has used CUDA cannot fork ranks that use it.
    missing = cuda_ipc::cuda_unavailable_reason_from_child();
  } else if (heap::is_heap(name)) {
    missing = heap::unavailable_reason_from_child(name);
  } else {
    throw Error(
        Errc::invalid_argument,
        fmt::format("transport '{}' is not known; allowed are: shm, mpi, ofi, cuda_ipc, nvshmem, nccl, auto",
                    name));
  }
  if (!missing.empty())
    throw Error(Errc::unavailable, name == "shm" ? missing : fmt::format("transport {}: {}", name, missing));
  // What the hosts say to each other between nodes goes over another one.
  if (heap::is_heap(name) && nodes > 1) check_transport(resolve_transport("auto", way, nodes), way, nodes);
  if (name == "mpi" && way != LaunchWay::mpi) {
    throw Error(
        Errc::unavailable,
        "transport mpi: the ranks were not started by MPI; start them with mpirun, or with srun --mpi=pmix");
  }
  if (name == "shm" && way != LaunchWay::local && nodes > 1) {
    throw Error(
        Errc::unavailable,
        fmt::format("transport shm: the ranks are on {} nodes, which share no memory; auto, mpi or ofi "
                    "is possible",
                    nodes));
  }
  if (name == kCudaIpc && nodes > 1) {
    throw Error(Errc::unavailable,
                fmt::format("transport cuda_ipc: the ranks are on {} nodes, whose GPUs do not "
                            "reach each other's memory; one node is possible",
                            nodes));
  }
}

std::unique_ptr<Transport> open_transport(const std::string& name, const LaunchOptions& options,
                                          const World& world, const NodePart& node, Bootstrap* bootstrap,
                                          Deadline deadline) {
  const auto devices = [&] {
    return options.devices.empty() ? cuda_ipc::parse_devices(std::getenv("SHUNT_DEVICE")) : options.devices;
  };
  if (heap::is_heap(name)) {
    const heap::PluginTable& table = heap::plugin(name);
    const char* beneath = world.num_nodes() == 1 ? "shm" : mpi_begun() ? "mpi" : "ofi";
    auto owned = open_transport(beneath, options, world, node, bootstrap, deadline);
    Transport& host = *owned;
    const heap::RankPlaces places{.devices = devices(), .processes = node.processes};
    return heap::open_heap_transport(table, name, places, host, deadline, std::move(owned));
  }
  if (name == kCudaIpc) {
    const std::vector<std::int32_t> listed = devices();
    auto control = std::make_unique<shm::ShmTransport>(node.segment, world, node.processes,
                                                       node.oversubscribed, deadline);
    Transport& host = *control;
    return std::make_unique<cuda_ipc::DeviceTransport>(
        host, cuda_ipc::make_cuda_api(listed, world.local_rank), deadline, std::move(control));
  }
  if (name == "shm" || world.num_nodes() == 1) {
    return std::make_unique<shm::ShmTransport>(node.segment, world, node.processes, node.oversubscribed,
                                               deadline);
  }
  auto network = name == "mpi" ? make_mpi_network(*bootstrap, world, options, deadline)
                               : make_ofi_network(*bootstrap, world, options, deadline);
  return std::make_unique<net::HybridTransport>(
      node.segment, *bootstrap, std::move(network), world,
      net::HybridTransport::Options{.processes = node.processes, .oversubscribed = node.oversubscribed},
      deadline);
}

}  // namespace shunt
