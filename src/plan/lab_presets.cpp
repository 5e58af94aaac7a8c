#include <algorithm>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <shunt/core/error.h>
#include <shunt/core/nearest.h>
#include <shunt/plan/lab.h>

namespace shunt::plan::lab {
namespace {

using Layers = std::vector<std::int64_t>;

Layers repeat(std::int64_t layers, std::size_t stages) {
  return Layers(stages, layers);
}

template <class Item>
const Item& find(const std::vector<Item>& items, std::string_view name, const char* kind) {
  for (const Item& item : items)
    if (item.name == name) return item;
  std::vector<std::string> names;
  for (const Item& item : items) names.push_back(item.name);
  throw Error(Errc::invalid_argument,
              fmt::format("{} \"{}\" does not exist; {}", kind, name, allowed_names(name, names)));
}

using Env = std::vector<std::pair<std::string, std::string>>;

Env joined(Env env, const Env& more) {
  for (const auto& [key, value] : more) {
    const auto same =
        std::find_if(env.begin(), env.end(), [k = key](const auto& pair) { return pair.first == k; });
    if (same != env.end()) {
      same->second = value;
    } else {
      env.emplace_back(key, value);
    }
  }
  return env;
}

const EnvProfile& find_profile(const std::vector<std::pair<Role, EnvProfile>>& profiles, Role role,
                               std::string_view fabric, const char* target) {
  std::vector<std::string> fabrics;
  for (const auto& [r, profile] : profiles) {
    if (r != role) continue;
    if (profile.fabric == fabric) return profile;
    fabrics.push_back(profile.fabric);
  }
  throw Error(Errc::invalid_argument,
              fmt::format("fabric \"{}\" of {}: allowed are {}", fabric, target, fmt::join(fabrics, ", ")));
}

}  // namespace

const std::vector<Spec>& specs() {
  static const std::vector<Spec> all = [] {
    const Cluster ib{"GB200 NVL72 (8 racks, dual 800G CX8)", 72, 8, 2, 800, 1.8, 192, "InfiniBand"};
    Cluster ethernet{"GB200 NVL72 (8 racks, dual 400G Ethernet)", 72, 8, 2, 400, 1.8, 192, "Ethernet"};
    const Cluster dgx{"DGX A100 (16 nodes, dual HDR100)", 16, 8, 2, 100, 0.6, 80, "InfiniBand"};
    const Model gpt{"GPT-OSS-120B MoE", 120, 10240, 4096, 96, 32, 256};
    const Model r1{"DeepSeek-R1-678B MoE", 678, 14336, 4096, 128, 48, 256};
    const Model old{"175B MoE Transformer", 175, 12288, 2048, 96, 24, 128};
    return std::vector<Spec>{{"gpt_oss_120b_gb200_ib", ib, gpt},
                             {"gpt_oss_120b_gb200_ethernet", ethernet, gpt},
                             {"deepseek_r1_678b_gb200_ib", ib, r1},
                             {"dgx_a100_175b", dgx, old}};
  }();
  return all;
}

const Spec& find_spec(std::string_view name) {
  return find(specs(), name, "spec");
}

const std::vector<Target>& targets() {
  static const std::vector<Target> all = {
      {"alltoall_tuning",
       Kind::alltoall,
       "",
       {"all-to-all, baseline settings", 12, 3, 2, 8, 16, 10, 4, 1.15, .5, .75, repeat(32, 3)},
       {"all-to-all, tuned settings", 12, 3, 2, 8, 16, 10, 4, 1.15, .5, .75, repeat(32, 3)},
       {"nvlink", "ib", "efa"}},
      {"deepseek_gb200",
       Kind::plan,
       "deepseek_r1_678b_gb200_ib",
       {"DeepSeek-R1 on GB200, baseline", 9, 8, 2, 4, 32, 24, 4, 1.2, .5, .9, repeat(16, 8)},
       {"DeepSeek-R1 on GB200, optimized", 8, 6, 3, 4, 32, 36, 4, 1.2, .5, .9, {22, 21, 21, 21, 21, 22}}},
      {"gpt_gb200",
       Kind::plan,
       "gpt_oss_120b_gb200_ib",
       {"GPT-OSS on GB200, baseline", 9, 8, 2, 4, 48, 24, 4, 1.2, .6, .9, repeat(12, 8)},
       {"GPT-OSS on GB200, optimized", 8, 6, 3, 4, 64, 32, 4, 1.2, .5, .85, {18, 16, 16, 16, 15, 15}},
       {"ib", "ethernet", "both"}},
      {"memory_budget",
       Kind::plan,
       "",
       {"memory budget, baseline", 4, 4, 1, 8, 64, 24, 4, 1.1, 1, 1, repeat(24, 4)},
       {"memory budget, optimized", 4, 4, 2, 4, 32, 16, 4, 1.25, .5, .85, repeat(24, 4)}},
      {"moe_grouping",
       Kind::plan,
       "",
       {"grouping, baseline", 2, 4, 2, 8, 24, 12, 2, 0.9, .75, 1, repeat(24, 4), true},
       {"grouping, optimized", 4, 4, 2, 4, 32, 18, 4, 1.25, .5, 1, repeat(24, 4)}},
      {"moe_vllm_env",
       Kind::vllm,
       "",
       {"serving environment, baseline", 1, 1, 2, 4, 8, 6, 4, 1.15, .75, .9, {}},
       {"serving environment, optimized", 1, 1, 2, 4, 8, 6, 4, 1.15, .75, .9, {}},
       {"nvlink", "nvl72"}},
      {"network_affinity",
       Kind::plan,
       "",
       {"affinity, baseline", 8, 2, 1, 8, 16, 10, 4, 1.1, .75, 1, repeat(48, 2)},
       {"affinity, optimized", 4, 4, 2, 4, 32, 18, 4, 1.25, .5, .95, repeat(24, 4)}},
      {"parallelism_breakdown",
       Kind::plan,
       "",
       {"breakdown, baseline", 2, 16, 1, 2, 16, 8, 8, 1.0, 1, 1, repeat(6, 16), true},
       {"breakdown, optimized", 4, 4, 2, 4, 32, 16, 4, 1.25, .5, 1, repeat(24, 4)}},
      {"pipeline_schedule",
       Kind::plan,
       "",
       {"schedule, baseline", 4, 8, 1, 4, 8, 6, 4, 1.0, 1, 1, {36, 12, 12, 12, 12, 6, 3, 3}},
       {"schedule, optimized", 4, 4, 2, 4, 32, 20, 4, 1.25, .5, .9, {26, 22, 24, 24}}},
  };
  return all;
}

const Target& find_target(std::string_view name) {
  for (const std::string_view prefix : {"labs/moe_parallelism:", "moe_parallelism:"}) {
    if (!name.starts_with(prefix)) continue;
    return find(targets(), name.substr(prefix.size()), "target");
  }
  return find(targets(), name, "target");
}

const EnvProfile& alltoall_profile(Role role, std::string_view fabric) {
  static const std::vector<std::pair<Role, EnvProfile>> all = [] {
    std::vector<std::pair<Role, EnvProfile>> profiles;
    profiles.push_back({Role::baseline,
                        {"baseline nvlink",
                         "nvlink",
                         .55,
                         0,
                         {{"NCCL_MNNVL_ENABLE", "0"},
                          {"NCCL_PXN_DISABLE", "1"},
                          {"NCCL_P2P_LEVEL", "PIX"},
                          {"NCCL_PROTO", "Simple"},
                          {"NCCL_NET_GDR_LEVEL", "SYS"}}}});
    profiles.push_back({Role::optimized,
                        {"optimized nvlink",
                         "nvlink",
                         .92,
                         0,
                         {{"NCCL_MNNVL_ENABLE", "1"},
                          {"NCCL_PXN_DISABLE", "0"},
                          {"NCCL_P2P_LEVEL", "NVL"},
                          {"NCCL_PROTO", "LL128,Simple"},
                          {"NCCL_DEBUG", "INFO"}}}});
    for (const char* fabric_name : {"ib", "efa"}) {
      const std::string f = fabric_name;
      profiles.push_back({Role::baseline,
                          {"baseline " + f,
                           f,
                           .65,
                           0,
                           {{"NCCL_MNNVL_ENABLE", "1"},
                            {"NCCL_PXN_DISABLE", "0"},
                            {"NCCL_P2P_LEVEL", "NVL"},
                            {"NCCL_PROTO", "LL128,Simple"},
                            {"NCCL_NET_GDR_LEVEL", "0"}}}});
      profiles.push_back({Role::optimized,
                          {"optimized " + f,
                           f,
                           .85,
                           0,
                           {{"NCCL_MNNVL_ENABLE", "0"},
                            {"NCCL_PXN_DISABLE", "1"},
                            {"NCCL_P2P_LEVEL", "PIX"},
                            {"NCCL_PROTO", "Simple"},
                            {"NCCL_NET_GDR_LEVEL", "SYS"},
                            {"NCCL_DEBUG", "INFO"}}}});
    }
    return profiles;
  }();
  return find_profile(all, role, fabric, "alltoall_tuning");
}

const EnvProfile& vllm_profile(Role role, std::string_view fabric) {
  static const std::vector<std::pair<Role, EnvProfile>> all = [] {
    const Env base = {{"CUDA_DEVICE_MAX_CONNECTIONS", "8"},
                      {"NCCL_P2P_LEVEL", "PIX"},
                      {"NCCL_PROTO", "Simple"},
                      {"NCCL_ALGO", "Ring"},
                      {"NCCL_MIN_NCHANNELS", "1"},
                      {"NCCL_MAX_NCHANNELS", "4"},
                      {"NCCL_NTHREADS", "256"},
                      {"NCCL_LL_THRESHOLD", "65536"},
                      {"NCCL_LL128_THRESHOLD", "131072"},
                      {"NCCL_IB_DISABLE", "0"},
                      {"NCCL_NET_GDR_LEVEL", "0"},
                      {"NCCL_LAUNCH_MODE", "PARALLEL"},
                      {"NCCL_ASYNC_ERROR_HANDLING", "0"},
                      {"TORCH_NCCL_HIGH_PRIORITY", "0"},
                      {"VLLM_USE_CUDA_GRAPH", "0"}};
    const Env rack = {{"NCCL_IB_QPS_PER_CONNECTION", "1"}, {"NCCL_CROSS_NIC", "0"},
                      {"NCCL_SOCKET_NTHREADS", "1"},       {"NCCL_NSOCKS_PERTHREAD", "1"},
                      {"NCCL_NET_PROTOCOL", "Socket"},     {"NCCL_IB_TC", "0"}};
    const Env tuned = {{"CUDA_DEVICE_MAX_CONNECTIONS", "1"},
                       {"CUDA_GRAPH_CACHE_SIZE", "4194304"},
                       {"NCCL_P2P_LEVEL", "SYS"},
                       {"NCCL_P2P_DISABLE", "0"},
                       {"NCCL_SHM_DISABLE", "0"},
                       {"NCCL_NET_GDR_LEVEL", "2"},
                       {"NCCL_PROTO", "LL,LL128,Simple"},
                       {"NCCL_ALGO", "Tree,Ring"},
                       {"NCCL_MIN_NCHANNELS", "4"},
                       {"NCCL_MAX_NCHANNELS", "16"},
                       {"NCCL_NTHREADS", "512"},
                       {"NCCL_LL_THRESHOLD", "2048"},
                       {"NCCL_LL128_THRESHOLD", "16384"},
                       {"NCCL_TOPO_DUMP_FILE", "nccl_topo.xml"},
                       {"NCCL_GRAPH_DUMP_FILE", "nccl_graph.xml"},
                       {"NCCL_IB_DISABLE", "1"},
                       {"NCCL_LAUNCH_MODE", "GROUP"},
                       {"NCCL_ASYNC_ERROR_HANDLING", "1"},
                       {"TORCH_NCCL_HIGH_PRIORITY", "1"},
                       {"VLLM_WORKER_MULTIPROC_METHOD", "spawn"},
                       {"VLLM_USE_CUDA_GRAPH", "1"},
                       {"VLLM_ATTENTION_BACKEND", "FLASHINFER"}};
    const Env tuned_rack = {{"NCCL_IB_DISABLE", "0"},
                            {"NCCL_IB_GID_INDEX", "0"},
                            {"NCCL_IB_PCI_RELAXED_ORDERING", "1"},
                            {"NCCL_IB_QPS_PER_CONNECTION", "2"},
                            {"NCCL_CROSS_NIC", "1"},
                            {"NCCL_SOCKET_NTHREADS", "4"},
                            {"NCCL_NSOCKS_PERTHREAD", "2"},
                            {"NCCL_PROTO", "LL128,LL,Simple"},
                            {"NCCL_MIN_NCHANNELS", "8"},
                            {"NCCL_MAX_NCHANNELS", "32"},
                            {"NCCL_LL_THRESHOLD", "4096"},
                            {"NCCL_LL128_THRESHOLD", "32768"},
                            {"NCCL_NET_PROTOCOL", "SIMPLE"},
                            {"NCCL_IB_SL", "0"},
                            {"NCCL_IB_TC", "106"}};
    return std::vector<std::pair<Role, EnvProfile>>{
        {Role::baseline, {"baseline nvlink", "nvlink", .58, 4.0, base}},
        {Role::baseline, {"baseline nvl72", "nvl72", .45, 10.0, joined(base, rack)}},
        {Role::optimized, {"optimized nvlink", "nvlink", .93, 1.0, tuned}},
        {Role::optimized, {"optimized nvl72", "nvl72", .82, 1.5, joined(tuned, tuned_rack)}}};
  }();
  return find_profile(all, role, fabric, "moe_vllm_env");
}

Cluster vllm_cluster(std::string_view fabric) {
  if (fabric == "nvl72") return {"GB200 NVL72 (dual-rail IB)", 9, 8, 2, 800, 1.8, 192, "InfiniBand"};
  return {"GB200/B200 NVLink (single node)", 1, 8, 2, 800, 1.8, 192, "NVLink"};
}

}  // namespace shunt::plan::lab
