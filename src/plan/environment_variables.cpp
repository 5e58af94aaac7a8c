#include "environment_variables.h"

// Source: docs/userguide/source/env.rst and src/ of NVIDIA/nccl at 5067397c; env_defs.h of NVSHMEM; doc/efa-env-var.md of
// aws-ofi-nccl; ucx_info of UCX; envs.py of vLLM.
namespace shunt::plan {
namespace {

constexpr Version kNever{};
constexpr const char* kLevels = "LOC NVL PIX PXB PHB SYS";

KnownVariable any(const char* name) {
  return {name};
}
KnownVariable number(const char* name, std::int64_t low, std::int64_t high) {
  return {name, ValueKind::integer, "", low, high};
}
KnownVariable choice(const char* name, const char* choices) {
  return {name, ValueKind::choice, choices};
}
KnownVariable list(const char* name, const char* choices) {
  return {name, ValueKind::list, choices};
}
KnownVariable flag(const char* name) {
  return number(name, 0, 1);
}
KnownVariable since(KnownVariable v, Version version) {
  v.since = version;
  return v;
}
KnownVariable deprecated(KnownVariable v, Version version, const char* note) {
  v.deprecated = version;
  v.note = note;
  return v;
}
KnownVariable removed(KnownVariable v, Version version, const char* note) {
  v.removed = version;
  v.note = note;
  return v;
}

std::vector<KnownVariable> nccl() {
  constexpr std::int64_t kMany = std::int64_t{1} << 40;
  return {
      list("NCCL_PROTO", "LL LL128 Simple"),
      list("NCCL_ALGO", "Ring Tree CollnetChain CollnetDirect NVLS NVLSTree PAT"),
      since(number("NCCL_NVLS_ENABLE", 0, 2), {2, 17}),
      since(number("NCCL_MNNVL_ENABLE", 0, 2), {2, 21}),
      any("NCCL_MNNVL_UUID"),
      any("NCCL_MNNVL_CLIQUE_ID"),
      number("NCCL_CUMEM_ENABLE", 0, 2),
      choice("NCCL_P2P_LEVEL", kLevels),
      choice("NCCL_NET_GDR_LEVEL", "LOC PIX PXB PHB SYS"),
      flag("NCCL_NET_GDR_READ"),
      flag("NCCL_PXN_DISABLE"),
      number("NCCL_P2P_PXN_LEVEL", 0, 2),
      number("NCCL_CROSS_NIC", 0, 2),
      number("NCCL_IB_QPS_PER_CONNECTION", 1, 128),
      flag("NCCL_IB_SPLIT_DATA_ON_QPS"),
      number("NCCL_IB_TC", 0, 255),
      number("NCCL_IB_SL", 0, 15),
      number("NCCL_IB_GID_INDEX", -1, 255),
      any("NCCL_IB_HCA"),
      any("NCCL_SOCKET_IFNAME"),
      number("NCCL_IB_PCI_RELAXED_ORDERING", 0, 2),
      flag("NCCL_IB_ADAPTIVE_ROUTING"),
      flag("NCCL_IB_MERGE_NICS"),
      number("NCCL_MIN_CTAS", 1, 64),
      number("NCCL_MAX_CTAS", 1, 64),
      deprecated(number("NCCL_MIN_NCHANNELS", 1, 64), {2, 17}, "NCCL_MIN_CTAS"),
      deprecated(number("NCCL_MAX_NCHANNELS", 1, 64), {2, 17}, "NCCL_MAX_CTAS"),
      number("NCCL_NTHREADS", 64, 512),
      number("NCCL_BUFFSIZE", 1, kMany),
      number("NCCL_P2P_NET_CHUNKSIZE", 1, kMany),
      number("NCCL_CHUNK_SIZE", 1, kMany),
      number("NCCL_P2P_LL_THRESHOLD", 0, kMany),
      deprecated(choice("NCCL_LAUNCH_MODE", "PARALLEL GROUP"), {2, 9}, ""),
      removed(any("NCCL_LL_THRESHOLD"), {2, 5}, "the tuner chooses the protocol; NCCL_PROTO restricts it"),
      removed(any("NCCL_TREE_THRESHOLD"), {2, 5}, "the tuner chooses the algorithm; NCCL_ALGO restricts it"),
      number("NCCL_SOCKET_NTHREADS", 1, 16),
      number("NCCL_NSOCKS_PERTHREAD", 1, 64),
      flag("NCCL_GRAPH_MIXING_SUPPORT"),
      flag("NCCL_GRAPH_REGISTER"),
      flag("NCCL_DMABUF_ENABLE"),
      since(flag("NCCL_WIN_ENABLE"), {2, 27}),
      choice("NCCL_CTA_POLICY", "DEFAULT EFFICIENCY ZERO 0 1 2"),
      any("NCCL_NET"),
      any("NCCL_NET_PLUGIN"),
      any("NCCL_TUNER_PLUGIN"),
      flag("NCCL_IB_DISABLE"),
      flag("NCCL_P2P_DISABLE"),
      flag("NCCL_SHM_DISABLE"),
      number("NCCL_IB_TIMEOUT", 1, 31),
      number("NCCL_IB_RETRY_CNT", 0, 7),
      any("NCCL_TOPO_DUMP_FILE"),
      any("NCCL_TOPO_FILE"),
      any("NCCL_GRAPH_DUMP_FILE"),
      any("NCCL_GRAPH_FILE"),
      any("NCCL_DEBUG_FILE"),
      choice("NCCL_DEBUG", "VERSION WARN INFO TRACE"),
      any("NCCL_DEBUG_SUBSYS"),
      since(flag("NCCL_GIN_ENABLE"), {2, 28}),
      since(number("NCCL_GIN_TYPE", -1, 8), {2, 28}),
      flag("NCCL_SET_THREAD_NAME"),
      any("NCCL_COMM_ID"),
      any("NCCL_CONF_FILE"),
      any("NCCL_SOCKET_FAMILY"),
      any("NCCL_COMM_BLOCKING"),
      any("NCCL_IGNORE_CPU_AFFINITY"),
      any("NCCL_LOCAL_REGISTER"),
      any("NCCL_CUMEM_HOST_ENABLE"),
  };
}

std::vector<KnownVariable> nvshmem() {
  std::vector<KnownVariable> all = {
      any("NVSHMEM_SYMMETRIC_SIZE"),
      flag("NVSHMEM_IB_ENABLE_IBGDA"),
      number("NVSHMEM_IBGDA_NUM_RC_PER_PE", 0, 1 << 16),
      number("NVSHMEM_IBGDA_NUM_DCI", 0, 1 << 16),
      number("NVSHMEM_IBGDA_NUM_DCT", 0, 1 << 16),
      choice("NVSHMEM_IBGDA_NIC_HANDLER", "auto gpu cpu cpu_host_memory"),
      number("NVSHMEM_IBGDA_NUM_REQUESTS_IN_BATCH", 1, 1 << 16),
      flag("NVSHMEM_IBGDA_ENABLE_MULTI_PORT"),
      number("NVSHMEM_QP_DEPTH", 1, 1 << 20),
      number("NVSHMEM_IB_GID_INDEX", -1, 255),
      number("NVSHMEM_IB_SL", 0, 15),
      number("NVSHMEM_IB_TRAFFIC_CLASS", 0, 255),
      flag("NVSHMEM_IB_ENABLE_RELAXED_ORDERING"),
      any("NVSHMEM_HCA_LIST"),
      any("NVSHMEM_HCA_PE_MAPPING"),
      flag("NVSHMEM_ENABLE_NIC_PE_MAPPING"),
      choice("NVSHMEM_REMOTE_TRANSPORT", "ibrc ucx ibdevx libfabric ibgda none"),
      choice("NVSHMEM_LIBFABRIC_PROVIDER", "cxi efa verbs"),
      flag("NVSHMEM_DISABLE_P2P"),
      flag("NVSHMEM_DISABLE_NVLS"),
      flag("NVSHMEM_DISABLE_MNNVL"),
      number("NVSHMEM_MAX_TEAMS", 1, 1 << 16),
      any("NVSHMEM_CUMEM_GRANULARITY"),
      choice("NVSHMEM_BOOTSTRAP", "PMI MPI SHMEM plugin UID"),
      any("NVSHMEM_BOOTSTRAP_UID_SOCK_IFNAME"),
      flag("NVSHMEM_DISABLE_CUDA_VMM"),
      any("NVSHMEM_DEBUG"),
      any("NVSHMEM_DEBUG_FILE"),
      any("NVSHMEM_INFO"),
      any("NVSHMEM_VERSION"),
  };
  for (const char* name : {"NVSHMEM_IBGDA_DCI_MAP_BY", "NVSHMEM_IBGDA_RC_MAP_BY"})
    all.push_back(choice(name, "cta sm warp dct"));
  return all;
}

std::vector<KnownVariable> others() {
  return {
      any("UCX_TLS"),
      any("UCX_NET_DEVICES"),
      choice("UCX_RNDV_SCHEME", "auto get_zcopy put_zcopy get_ppln put_ppln rkey_ptr am"),
      any("UCX_RNDV_THRESH"),
      number("UCX_MAX_RNDV_RAILS", 1, 4),
      number("UCX_MAX_EAGER_RAILS", 1, 4),
      any("UCX_IB_GID_INDEX"),
      any("UCX_IB_SL"),
      any("UCX_IB_TRAFFIC_CLASS"),
      choice("UCX_PROTO_ENABLE", "y n yes no 0 1"),
      choice("UCX_MEMTYPE_CACHE", "y n try yes no 0 1"),
      any("UCX_LOG_LEVEL"),
      any("FI_PROVIDER"),
      any("FI_LOG_LEVEL"),
      flag("FI_EFA_USE_DEVICE_RDMA"),
      flag("FI_EFA_FORK_SAFE"),
      flag("FI_EFA_USE_HUGE_PAGE"),
      any("FI_EFA_ENABLE_SHM_TRANSFER"),
      choice("OFI_NCCL_PROTOCOL", "SENDRECV RDMA"),
      any("OFI_NCCL_MIN_STRIPE_SIZE"),
      any("OFI_NCCL_EAGER_MAX_SIZE"),
      any("OFI_NCCL_NIC_DUP_CONNS"),
      any("OFI_NCCL_CQ_SIZE"),
      any("OFI_NCCL_NET_LATENCY"),
      any("OFI_NCCL_DISABLE_GDR_REQUIRED_CHECK"),
      any("OFI_NCCL_DISABLE_DMABUF"),
      any("RDMAV_FORK_SAFE"),
      number("VLLM_MOE_DP_CHUNK_SIZE", 1, 1 << 30),
      number("VLLM_FUSED_MOE_CHUNK_SIZE", 1, 1 << 30),
      flag("VLLM_USE_DEEP_GEMM"),
      flag("VLLM_USE_FLASHINFER_MOE_FP8"),
      flag("VLLM_USE_FLASHINFER_MOE_FP4"),
      flag("VLLM_USE_FLASHINFER_MOE_FP16"),
      any("VLLM_MAX_TOKENS_PER_EXPERT_FP4_MOE"),
      any("VLLM_ATTENTION_BACKEND"),
      choice("VLLM_WORKER_MULTIPROC_METHOD", "fork spawn"),
      any("VLLM_DP_RANK"),
      any("VLLM_DP_SIZE"),
      any("VLLM_DP_MASTER_IP"),
      any("VLLM_DP_MASTER_PORT"),
      any("VLLM_NIXL_SIDE_CHANNEL_HOST"),
      any("VLLM_NIXL_SIDE_CHANNEL_PORT"),
      any("VLLM_PP_LAYER_PARTITION"),
      any("VLLM_HOST_IP"),
      any("VLLM_LOGGING_LEVEL"),
      deprecated(choice("VLLM_ALL2ALL_BACKEND",
                        "naive pplx deepep_high_throughput deepep_low_latency "
                        "allgather_reducescatter flashinfer_all2allv"),
                 {0, 11}, "the option --all2all-backend"),
      flag("TORCH_NCCL_HIGH_PRIORITY"),
      number("TORCH_NCCL_ASYNC_ERROR_HANDLING", 0, 3),
      flag("TORCH_NCCL_BLOCKING_WAIT"),
      any("TORCH_NCCL_AVOID_RECORD_STREAMS"),
      any("TORCH_NCCL_DUMP_ON_TIMEOUT"),
      any("TORCH_NCCL_TRACE_BUFFER_SIZE"),
      any("TORCH_NCCL_ENABLE_MONITORING"),
      any("TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC"),
      number("CUDA_DEVICE_MAX_CONNECTIONS", 1, 32),
      any("CUDA_VISIBLE_DEVICES"),
      any("CUDA_LAUNCH_BLOCKING"),
      any("CUDA_MODULE_LOADING"),
      any("CUDA_HOME"),
      any("CUDA_PATH"),
      any("CUDA_CACHE_PATH"),
  };
}

}  // namespace

const std::vector<KnownVariable>& known_variables() {
  static const std::vector<KnownVariable> all = [] {
    std::vector<KnownVariable> variables = nccl();
    for (const auto& more : {nvshmem(), others()})
      variables.insert(variables.end(), more.begin(), more.end());
    return variables;
  }();
  static_assert(kNever == Version{});
  return all;
}

const std::vector<Impostor>& impostors() {
  static const std::vector<Impostor> all = {
      {"NCCL_LL128_THRESHOLD", "NCCL has no such variable and never had; NCCL_PROTO restricts the protocols"},
      {"NCCL_NET_PROTOCOL", "NCCL has no such variable; NCCL_NET chooses the network"},
      {"NCCL_ASYNC_ERROR_HANDLING",
       "is not NCCL's but PyTorch's, now TORCH_NCCL_ASYNC_ERROR_HANDLING; workers of vLLM delete it"},
      {"NCCL_BLOCKING_WAIT", "is not NCCL's but PyTorch's, now TORCH_NCCL_BLOCKING_WAIT"},
      {"VLLM_USE_CUDA_GRAPH", "vLLM has no such variable; --enforce-eager switches graphs off"},
      {"CUDA_GRAPH_CACHE_SIZE", "CUDA has no such variable"},
  };
  return all;
}

bool is_judged(std::string_view name) {
  for (const std::string_view prefix :
       {"NCCL_", "NVSHMEM_", "UCX_", "FI_", "OFI_NCCL_", "VLLM_", "TORCH_NCCL_"})
    if (name.starts_with(prefix)) return true;
  return name == "RDMAV_FORK_SAFE" || name == "CUDA_GRAPH_CACHE_SIZE" ||
         name == "CUDA_DEVICE_MAX_CONNECTIONS";
}

}  // namespace shunt::plan
