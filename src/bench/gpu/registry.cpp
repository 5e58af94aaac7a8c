#include <cstdlib>
#include <string_view>
#include <utility>

#include "../methods/torch_peer.h"
#include "method.h"

namespace shunt::bench {
namespace {

std::string torch_on_gpu_unavailable() {
  const char* const device = std::getenv("SHUNT_TORCH_DEVICE");
  if (device == nullptr || std::string_view(device) != "cuda")
    return "SHUNT_TORCH_DEVICE=cuda makes its processes use the GPU; without it they would compute on the "
           "CPU";
  return torch_unavailable();
}

}  // namespace

std::vector<MethodSpec> gpu_methods(const GpuRuntime& runtime, const GpuTerms& terms) {
  const auto ranks = std::make_shared<GpuRanks>(runtime);
  std::vector<MethodSpec> all;
  const auto add = [&](MethodSpec spec) {
    if (spec.unavailable.empty()) spec.unavailable = runtime.unavailable;
    all.push_back(std::move(spec));
  };
  const auto shunt = [&](const char* name, const char* summary, const ShuntWay& way, bool empty) {
    MethodSpec spec{.name = name, .summary = summary};
    spec.kind = empty                            ? MethodKind::floor
                : way.delivery == Delivery::view ? MethodKind::view
                                                 : MethodKind::rows;
    spec.unsuited = [](const Transport& transport) -> std::string {
      return transport.capabilities().device_memory
                 ? ""
                 : "the ranks' transport has no device memory; --transport cuda_ipc has";
    };
    spec.make = [ranks, terms, way, empty](const MethodContext& context) {
      return make_gpu_shunt_method(context, *ranks, terms, way, empty);
    };
    add(std::move(spec));
  };
  const auto packed = [&](const char* name, const char* summary, const PackedWay& way) {
    MethodSpec spec{.name = name, .summary = summary};
    spec.unavailable = runtime.of(way.carrier).unavailable;
    spec.unsuited = runtime.of(way.carrier).unsuited;
    // Those of NVSHMEM are the transport's, which is there already.
    spec.opens_sockets = way.carrier == Carrier::nccl;
    spec.make = [ranks, terms, way](const MethodContext& context) {
      return make_gpu_packed_method(context, *ranks, terms, way);
    };
    if (way.padded)
      spec.moved_bytes = [](const Workload& workload) {
        const Point& point = workload.point();
        return std::int64_t{point.ranks} * point.num_experts * point.tokens *
               (workload.row_bytes() + workload.scale_bytes() + workload.out_row_bytes());
      };
    add(std::move(spec));
  };
  shunt("shunt", "this library, rows delivered expert by expert", {}, false);
  shunt("shunt/view", "this library, pointers to the rows where they landed", {.delivery = Delivery::view},
        false);
  MethodSpec copy{.name = "memcpy",
                  .summary = "floor: device copies of as many bytes as arrive and come back"};
  copy.kind = MethodKind::floor;
  copy.touch_counts = false;
  copy.make = [ranks, terms](const MethodContext& context) {
    return make_gpu_copy_method(context, *ranks, terms);
  };
  add(std::move(copy));
  shunt("empty", "floor: the step of shunt with zero tokens", {}, true);
  packed("cuda/nccl", "our pack kernels, counts and exact bytes by ncclSend and ncclRecv", {});
  packed("cpu/nccl", "the same, packed by the CPU, with copies from and to the GPU", {.on_cpu = true});
  packed("dense/nccl", "every (rank, expert) block padded to the worst case, by NCCL", {.padded = true});
  MethodSpec torch{.name = "torch",
                   .summary =
                       "PyTorch in a process of each rank, all_to_all_single by NCCL; timed by the "
                       "host's clock, with a wait for the GPU after each part"};
  if (terms.cold)
    torch.unavailable = "its GPU work is in a process of its own, whose caches --cold does not reach";
  torch.look = torch_on_gpu_unavailable;
  torch.opens_sockets = true;
  torch.own_bytes = torch_bytes;
  torch.shared_sizes = torch_sizes;
  torch.make = make_torch_method;
  add(std::move(torch));
  packed("cuda/nvshmem", "as cuda/nccl, every piece put with a signal by NVSHMEM on the stream",
         {.carrier = Carrier::nvshmem});
  packed("cpu/nvshmem", "as cpu/nccl, likewise", {.on_cpu = true, .carrier = Carrier::nvshmem});
  packed("dense/nvshmem", "as dense/nccl, by nvshmemx_alltoallmem_on_stream",
         {.padded = true, .carrier = Carrier::nvshmem});
  return all;
}

}  // namespace shunt::bench
