#include <shunt/plan/environment.h>

#include <algorithm>

#include <fmt/format.h>

#include <shunt/core/error.h>
#include <shunt/core/nearest.h>

namespace shunt::plan {
namespace {

/// One variable on some fabrics (names with spaces between them; empty: all).
struct Setting {
  const char* fabrics;
  const char* library;
  const char* name;
  const char* value;
  const char* why;
};

// Only what a default does not already do; who sets less finds the cause of a problem sooner.
constexpr Setting kSettings[] = {
    {"", "nccl", "NCCL_DEBUG", "WARN", "says what failed; INFO shows which links and protocols are used"},
    {"nvl72", "nccl", "NCCL_MNNVL_ENABLE", "2",
     "uses the rack's NVLink where it is there; 1 would end the job where not"},
    {"nvl72", "nccl", "NCCL_CUMEM_ENABLE", "1", "multi-node NVLink needs this allocator"},
    {"ib", "nccl", "NCCL_CROSS_NIC", "0", "keeps rings on their rail; 1 where rails are not separate"},
    {"ib ethernet", "nccl", "NCCL_IB_QPS_PER_CONNECTION", "4",
     "spreads a connection over paths of the fabric; raise or lower by alltoall_perf"},
    {"ethernet", "nccl", "NCCL_IB_GID_INDEX", "3", "RoCEv2 over IPv4 on most hosts: show_gids tells"},
    {"ethernet", "nccl", "NCCL_IB_TC", "106",
     "the traffic class that most switches treat as lossless with ECN: ask the network's owner"},
    {"ib ethernet efa", "nccl", "NCCL_SOCKET_IFNAME", "^docker,lo",
     "start-up must use an interface that all hosts reach"},
    {"efa", "nccl", "NCCL_TUNER_PLUGIN", "libnccl-ofi-tuner.so", "the tables of aws-ofi-nccl for EFA"},
    {"efa", "libfabric", "FI_EFA_USE_HUGE_PAGE", "0", "huge pages make fork fail with out of memory"},
    {"ib", "nvshmem", "NVSHMEM_IB_ENABLE_IBGDA", "1", "the GPU posts its own sends: low-latency dispatch"},
    {"ib", "nvshmem", "NVSHMEM_IBGDA_NIC_HANDLER", "gpu", "no proxy thread between GPU and card"},
    {"ethernet", "nvshmem", "NVSHMEM_IB_ENABLE_IBGDA", "1",
     "the GPU posts its own sends: low-latency dispatch"},
    {"ethernet", "nvshmem", "NVSHMEM_IB_GID_INDEX", "3", "as NCCL_IB_GID_INDEX"},
    {"ethernet", "nvshmem", "NVSHMEM_IB_TRAFFIC_CLASS", "106", "as NCCL_IB_TC"},
    {"efa", "nvshmem", "NVSHMEM_REMOTE_TRANSPORT", "libfabric", "the only way of NVSHMEM to EFA"},
    {"efa", "nvshmem", "NVSHMEM_LIBFABRIC_PROVIDER", "efa", "the provider of libfabric"},
    {"ib ethernet", "ucx", "UCX_TLS", "rc,cuda,sm,self",
     "verbs and GPU memory; without cuda, GPU memory cannot be sent"},
    {"ethernet", "ucx", "UCX_IB_GID_INDEX", "3", "as NCCL_IB_GID_INDEX"},
    {"ethernet", "ucx", "UCX_IB_TRAFFIC_CLASS", "106", "as NCCL_IB_TC"},
    {"nvlink nvl72", "ucx", "UCX_TLS", "cuda,sm,tcp,self", "GPU memory over NVLink, TCP for control"},
    {"", "vllm", "VLLM_WORKER_MULTIPROC_METHOD", "spawn", "fork after CUDA has started is an error"},
};

bool on(const char* fabrics, const std::string& fabric) {
  const std::string all = fmt::format(" {} ", fabrics);
  return all == "  " || all.find(fmt::format(" {} ", fabric)) != std::string::npos;
}

void check_name(const char* what, const std::string& name, const std::vector<std::string>& names) {
  if (std::find(names.begin(), names.end(), name) != names.end()) return;
  throw Error(Errc::invalid_argument, fmt::format("{} \"{}\": {}", what, name, allowed_names(name, names)));
}

const char* vllm_backend(const std::string& fabric) {
  if (fabric == "nvlink") return "pplx";
  if (fabric == "nvl72") return "flashinfer_nvlink_one_sided";
  if (fabric == "efa") return "allgather_reducescatter";
  return "deepep_low_latency";
}

void add_checks(const std::string& fabric, std::int64_t gpus, Table& commands) {
  const auto add = [&](const char* kind, const std::string& command, const char* why) {
    commands.rows.push_back({std::string(kind), command, std::string(why)});
  };
  add("validate", "nvidia-smi topo -m", "which GPUs and cards are near each other");
  if (fabric == "nvl72") {
    add("validate", "nvidia-imex-ctl -H -N", "every host of the NVLink domain is in one IMEX domain");
    add("validate", "nvbandwidth -p multinode", "bandwidth between hosts of the rack");
  } else {
    add("validate", "nvbandwidth", "bandwidth between GPUs of a host");
  }
  if (fabric == "ib" || fabric == "ethernet")
    add("validate", "ib_write_bw -d mlx5_0 -F --report_gbits HOST",
        "one card against another host, without GPUs");
  if (fabric == "ethernet") add("validate", "show_gids", "the index of the RoCEv2 address");
  if (fabric == "efa") add("validate", "fi_info -p efa -t FI_EP_RDM", "the cards that libfabric sees");
  const char* hosts = fabric == "nvlink" ? "" : " --hostfile hosts";
  for (const char* program : {"alltoall_perf", "all_reduce_perf"})
    add("validate",
        fmt::format("mpirun -np {}{} --bind-to none {} -b 512 -e 1G -f 2 -g 1", gpus, hosts, program),
        "latency at small sizes, bandwidth at large ones; -x NCCL_DEBUG=INFO shows the path");
}

void add_servers(const EnvironmentOptions& o, std::int64_t gpus, Table& commands) {
  const std::int64_t dp = gpus / (o.tp * o.pp);
  commands.rows.push_back(
      {std::string("smoke"),
       fmt::format(
           "vllm serve {} --tensor-parallel-size {} --pipeline-parallel-size {} --data-parallel-size {} "
           "--enable-expert-parallel --all2all-backend {} --max-model-len {} --max-num-seqs {} "
           "--gpu-memory-utilization {}",
           o.model, o.tp, o.pp, dp, vllm_backend(o.fabric), o.max_len, o.max_seqs, o.gpu_util),
       std::string("experts over tp * dp ranks")});
  // Its all-to-all backends other than none need ep = tp, where tp counts all ranks of attention and experts.
  const bool deepep = o.fabric == "ib" || o.fabric == "ethernet";
  commands.rows.push_back(
      {std::string("smoke"),
       fmt::format(
           "python3 -m sglang.launch_server --model-path {} --tp {} --ep {} --dp {} --enable-dp-attention{} "
           "--context-length {} --max-running-requests {} --mem-fraction-static {}",
           o.model, o.tp * dp, o.tp * dp, dp, deepep ? " --moe-a2a-backend deepep --deepep-mode auto" : "",
           o.max_len, o.max_seqs, o.gpu_util),
       std::string("tp counts all ranks; attention is divided among tp / dp of them")});
  commands.rows.push_back(
      {std::string("smoke"),
       std::string("curl -s http://localhost:8000/v1/completions -H 'Content-Type: application/json' -d "
                   "'{\"model\": \"" +
                   o.model + "\", \"prompt\": \"1 + 1 =\", \"max_tokens\": 4}'"),
       std::string("an answer from vLLM; SGLang listens on port 30000")});
}

}  // namespace

const std::vector<std::string>& environment_fabrics() {
  static const std::vector<std::string> names = {"nvlink", "nvl72", "ib", "ethernet", "efa"};
  return names;
}

const std::vector<std::string>& environment_libraries() {
  static const std::vector<std::string> names = {"nccl", "nvshmem", "ucx", "libfabric", "vllm", "sglang"};
  return names;
}

Report report_environment(const EnvironmentOptions& o) {
  check_name("--fabric", o.fabric, environment_fabrics());
  for (const std::string& library : o.libraries) check_name("--library", library, environment_libraries());
  const std::int64_t gpus =
      o.gpus > 0 ? o.gpus : (o.fabric == "nvlink" ? 8 : (o.fabric == "nvl72" ? 72 : 16));
  if (o.tp < 1 || o.pp < 1 || gpus % (o.tp * o.pp) != 0)
    throw Error(Errc::invalid_argument,
                fmt::format("tp {} * pp {} does not divide the {} GPUs", o.tp, o.pp, gpus));
  Report report("plan_env");
  report.head.set("fabric", o.fabric).set("gpus", gpus);
  report.summary = {
      fmt::format("settings for {}, {} GPUs; everything else as it is by default", o.fabric, gpus)};
  Table settings{"settings",
                 {{"library", "library"},
                  {"name", "name", Unit::none, true},
                  {"value", "value", Unit::none, true},
                  {"export", "export"},
                  {"why", "why"}},
                 {}};
  for (const Setting& s : kSettings) {
    if (!on(s.fabrics, o.fabric)) continue;
    if (!o.libraries.empty() &&
        std::find(o.libraries.begin(), o.libraries.end(), s.library) == o.libraries.end())
      continue;
    settings.rows.push_back({std::string(s.library), std::string(s.name), std::string(s.value),
                             fmt::format("export {}={}", s.name, s.value), std::string(s.why)});
  }
  Table commands{"commands", {{"kind", "kind"}, {"command", "command"}, {"why", "why"}}, {}};
  add_checks(o.fabric, gpus, commands);
  add_servers(o, gpus, commands);
  report.tables = {settings, commands};
  if (o.fabric == "ethernet")
    report.notes.emplace_back("DeepEP calls RoCE theoretically compatible; it was tested on InfiniBand");
  if (o.fabric == "efa")
    report.notes.emplace_back("EFA has no IBGDA: DeepEP's low-latency kernels do not run on it");
  return report;
}

}  // namespace shunt::plan
