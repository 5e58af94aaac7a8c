#include <utility>

#include <shunt/alltoall/config.h>
#include <shunt/bench/method.h>
#include <shunt/pack/kernels.h>
#include <shunt/transport/transport.h>

#include "dense.h"
#include "floors.h"
#include "gloo.h"
#include "mpi.h"
#include "packed.h"
#include "shunt.h"
#include "torch_peer.h"

namespace shunt::bench {
namespace {

MethodSpec shunt_method(const char* name, const char* summary, const ShuntWay& way) {
  MethodSpec spec{.name = name, .summary = summary};
  spec.kind = way.delivery == Delivery::view ? MethodKind::view : MethodKind::rows;
  spec.inner_phases_cost = true;
  // With one rank on each node, a token per node is a token per rank.
  spec.crossing = way.path == Path::flat ? CrossingPath::ranks : CrossingPath::nodes;
  spec.presum = way.presum;
  spec.own_bytes = [way](const Workload& workload, const MethodSettings& settings) {
    return shunt_bytes(workload, settings, way);
  };
  spec.make = [way](const MethodContext& context) { return make_shunt_method(context, way); };
  return spec;
}

/// Ways of shunt that differ from it only where some memory cannot be loaded.
MethodSpec network_method(const char* name, const char* summary, const ShuntWay& way) {
  MethodSpec spec = shunt_method(name, summary, way);
  spec.only_if_asked = [](const Transport& transport) -> std::string {
    return transport.capabilities().load_store ? "one node: the same as shunt" : "";
  };
  return spec;
}

MethodSpec packed_method(const char* name, const char* summary, bool simd, bool put) {
  MethodSpec spec{.name = name, .summary = summary};
  spec.shared_sizes = put ? put_sizes : alltoallv_sizes;
  spec.make = [simd, put](const MethodContext& context) {
    const PackKernels& kernels = simd ? pack_kernels() : pack_kernels(Isa::scalar);
    return put ? make_put_method(context, kernels) : make_alltoallv_method(context, kernels, simd);
  };
  return spec;
}

MethodSpec xcopy_method(const char* variant, CopyWay way) {
  MethodSpec spec{
      .name = "xcopy", .variant = variant, .summary = "floor of dispatch: the same bytes as bulk copies"};
  spec.kind = MethodKind::floor;
  spec.has_combine = false;
  spec.shared_sizes = xcopy_sizes;
  const bool put = way == CopyWay::put || way == CopyWay::put_node;
  spec.unsuited = [put](const Transport& transport) -> std::string {
    if (transport.capabilities().load_store == !put) return {};
    return put ? "every rank's memory can be loaded: push and pull are the floor"
               : "some ranks' memory cannot be loaded: put is the floor";
  };
  spec.make = [way](const MethodContext& context) { return make_xcopy_method(context, way); };
  return spec;
}

constexpr const char* kOnGpus = "this build has no such method for the CPU; --device cuda has one";

MethodSpec absent(const char* name, const char* summary, const char* reason) {
  MethodSpec spec{.name = name, .summary = summary};
  spec.unavailable = reason;
  return spec;
}

MethodSpec torch_method() {
  MethodSpec spec{.name = "torch", .summary = "PyTorch in a process of each rank, all_to_all_single"};
  spec.look = torch_unavailable;
  spec.opens_sockets = true;
  spec.own_bytes = torch_bytes;
  spec.shared_sizes = torch_sizes;
  spec.make = make_torch_method;
  return spec;
}

/// gloo's own thread beside the rank's on one core, or wherever this program may run: which is faster depends on
/// the size and on how many ranks share a core.
void add_gloo_methods(std::vector<MethodSpec>& all) {
  const char* const name = "simd/gloo";
  const char* const summary = "vector pack, gloo alltoallv over TCP, vector unpack";
#ifdef SHUNT_HAVE_GLOO
  for (const bool roaming : {false, true}) {
    MethodSpec spec{.name = name, .variant = roaming ? "roaming" : "pinned", .summary = summary};
    spec.opens_sockets = true;
    spec.shared_sizes = gloo_sizes;
    const std::vector<int> cpus = roaming ? usable_cpus() : std::vector<int>{};
    spec.make = [cpus](const MethodContext& context) { return make_gloo_method(context, cpus); };
    all.push_back(std::move(spec));
  }
#else
  all.push_back(absent(name, summary, "this build has no gloo (Debian package libgloo-dev)"));
#endif
}

}  // namespace

const char* inner_name(Inner inner) noexcept {
  switch (inner) {
    case Inner::route:
      return "route";
    case Inner::count_exchange:
      return "count_exchange";
    case Inner::pack:
      return "pack";
    case Inner::exchange:
      return "exchange";
    case Inner::unpack:
      return "unpack";
    case Inner::place:
      return "place";
    case Inner::combine_pack:
      return "combine_pack";
    case Inner::combine_exchange:
      return "combine_exchange";
    case Inner::reduce:
      return "reduce";
    case Inner::dispatch_send:
      return "dispatch_send";
    case Inner::dispatch_recv:
      return "dispatch_recv";
    case Inner::combine_send:
      return "combine_send";
    case Inner::combine_recv:
      return "combine_recv";
  }
  return "?";
}

std::vector<MethodSpec> alltoall_methods() {
  std::vector<MethodSpec> all;
  all.push_back(shunt_method("shunt", "rows copied once, straight to their expert's place", {}));
  all.push_back(shunt_method("shunt/view", "pointers to the rows where the sources hold them",
                             {.delivery = Delivery::view}));
  all.push_back(network_method("shunt/flat", "over several nodes, a token crosses once to each rank",
                               {.path = Path::flat}));
  all.push_back(network_method("shunt/hier", "over several nodes, a token crosses once to each node",
                               {.path = Path::hierarchical}));
  all.push_back(network_method("shunt/presum",
                               "as shunt/hier, and one sum of its results crosses back (other rounding)",
                               {.path = Path::hierarchical, .presum = true}));

  MethodSpec empty{.name = "empty", .summary = "floor: shunt's step with zero tokens"};
  empty.kind = MethodKind::floor;
  empty.own_bytes = [](const Workload&, const MethodSettings&) { return std::int64_t{1} << 20; };
  empty.make = make_empty_method;
  all.push_back(std::move(empty));
  all.push_back(xcopy_method("push", CopyWay::push));
  all.push_back(xcopy_method("push_streaming", CopyWay::push_streaming));
  all.push_back(xcopy_method("pull", CopyWay::pull));
  all.push_back(xcopy_method("pull_streaming", CopyWay::pull_streaming));
  all.push_back(xcopy_method("put", CopyWay::put));
  all.push_back(xcopy_method("put_node", CopyWay::put_node));
  MethodSpec reduce{.name = "reduce", .summary = "floor of combine: the weighted sums of rows already local"};
  reduce.kind = MethodKind::floor;
  reduce.has_dispatch = false;
  reduce.shared_sizes = reduce_sizes;
  reduce.make = make_reduce_method;
  all.push_back(std::move(reduce));

  all.push_back(packed_method("simd/put", "vector pack, put with signal, vector unpack", true, true));
  all.push_back(
      packed_method("simd/alltoallv", "vector pack in place, alltoallv, vector unpack", true, false));
  all.push_back(packed_method("scalar/put", "scalar pack, put with signal, scalar unpack", false, true));
  all.push_back(packed_method("scalar/alltoallv", "scalar pack, alltoallv, scalar unpack", false, false));
  MethodSpec dense{.name = "dense", .summary = "every (rank, expert) block padded to the worst case"};
  dense.shared_sizes = dense_sizes;
  dense.moved_bytes = dense_moved_bytes;
  dense.make = make_dense_method;
  all.push_back(std::move(dense));

  for (MethodSpec& spec : mpi_methods()) all.push_back(std::move(spec));
  all.push_back(torch_method());
  add_gloo_methods(all);
  all.push_back(absent("cpu/nccl", "CPU pack, NCCL", kOnGpus));
  all.push_back(absent("cpu/nvshmem", "CPU pack, NVSHMEM put", kOnGpus));
  all.push_back(absent("cuda/nccl", "CUDA pack, NCCL", kOnGpus));
  all.push_back(absent("cuda/nvshmem", "CUDA pack, NVSHMEM put", kOnGpus));
  all.push_back(absent("dense/nccl", "padded all-to-all by NCCL", kOnGpus));
  all.push_back(absent("dense/nvshmem", "padded all-to-all by NVSHMEM", kOnGpus));
  all.push_back(absent("memcpy", "floor: device copy of the same bytes", kOnGpus));
  return all;
}

}  // namespace shunt::bench
