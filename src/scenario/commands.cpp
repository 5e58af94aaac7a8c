#include "commands.h"

#include <algorithm>
#include <array>
#include <map>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "shell.h"
#include "templates.h"
#include "text.h"

namespace shunt::scenario {
namespace {

bool is_cloudai_ep(const Case& one) {
  const Workload workload = one.definition.workload;
  return workload == Workload::deepep_benchmark || workload == Workload::moe_benchmark ||
         workload == Workload::deepep_scripts;
}

void add_extra(const Case& one, std::vector<std::string>& words) {
  for (const auto& [key, value] : one.definition.extra_cmd_args)
    words.push_back(value.empty() ? key : fmt::format("{}={}", key, value));
}

std::string option(const std::string& key) {
  std::string name = "--" + key;
  std::replace(name.begin(), name.end(), '_', '-');
  return name;
}

void add_files(const std::string& folder, std::vector<std::string>& words) {
  words.insert(words.end(), {"--quiet", "--tsv", folder + "/shunt.tsv", "--jsonl", folder + "/shunt.jsonl"});
}

/// The benchmark of ours that stands in for those of CloudAI.
std::vector<std::string> own_all_to_all(const Case& one, const std::string& shunt,
                                        const std::string& folder) {
  const TestDefinition& test = one.definition;
  const bool scripts = test.workload == Workload::deepep_scripts;
  const bool low_latency =
      scripts ? test.text("subtest_name") == "test_low_latency" : test.text("mode") == "low_latency";
  const bool fp8 = test.text("data_type") == "fp8";
  std::vector<std::string> words = {shunt,
                                    "bench",
                                    "alltoall",
                                    "--experts",
                                    test.text("num_experts"),
                                    "--topk",
                                    test.text("num_topk"),
                                    "--hidden",
                                    test.text(scripts ? "hidden" : "hidden_size"),
                                    "--tokens",
                                    test.text(scripts ? "num_tokens" : "tokens"),
                                    "--in-dtype",
                                    fp8 ? "float8_e4m3fn" : "bfloat16",
                                    "--layout",
                                    low_latency ? "padded" : "packed",
                                    "--methods",
                                    "shunt"};
  constexpr std::int64_t kMostIterations = 500;
  if (!scripts)
    words.insert(words.end(),
                 {"--warmup", test.text("num_warmups"), "--iterations",
                  fmt::format("{}", std::min(test.whole("num_iterations", 50), kMostIterations))});
  add_files(folder, words);
  return words;
}

/// Nodes that this machine pretends to be, by the links that the test allows.
std::int64_t pretended_nodes(const Case& one, std::int64_t ranks) {
  const TestDefinition& test = one.definition;
  if (!is_cloudai_ep(one) || one.num_nodes == 1) return one.num_nodes;
  if (test.flag("allow_mnnvl")) return 1;
  const bool low_latency = test.text("mode") == "low_latency";
  return low_latency && !test.flag("allow_nvlink_for_low_latency") ? ranks : one.num_nodes;
}

std::vector<std::string> own_options(const Case& one) {
  const TestDefinition& test = one.definition;
  std::vector<std::string> words;
  for (const Argument& argument : test.cmd_args) {
    const Scalar& value = argument.values.front();
    if (const bool* flag = std::get_if<bool>(&value)) {
      if (*flag) words.push_back(option(argument.name));
      continue;
    }
    words.push_back(option(argument.name));
    words.push_back(to_text(value));
  }
  return words;
}

std::vector<std::string> nccl_words(const Case& one) {
  const TestDefinition& test = one.definition;
  const std::string program = test.text("subtest_name");
  const bool single = !program.ends_with("_mpi");
  const bool vectors = program == "alltoallv_perf_mpi";
  constexpr std::array<const char*, 5> kFirst = {"minbytes", "maxbytes", "ngpus", "warmup_iters", "iters"};
  constexpr std::array<const char*, 5> kShort = {"-b", "-e", "-g", "-w", "-n"};
  std::vector<std::string> words = {vectors ? "/opt/nccl-tests/build/alltoallv_perf" : program};
  if (vectors)
    for (std::size_t i = 0; i < kFirst.size(); ++i)
      words.insert(words.end(), {kShort[i], test.text(kFirst[i])});
  for (const Argument& argument : test.cmd_args) {
    const std::string& name = argument.name;
    if (name == "docker_image_url" || name == "subtest_name" || name == "use_deepep_matrix" ||
        name == "alltoallv_matrix_container_path" || name == "min_busbw")
      continue;
    if (vectors && std::find(kFirst.begin(), kFirst.end(), name) != kFirst.end()) continue;
    words.push_back(name == "ngpus" && single ? "-g" : "--" + name);
    words.push_back(to_text(argument.values.front()));
  }
  for (const auto& [key, value] : test.extra_cmd_args) {
    words.push_back(key);
    if (!value.empty()) words.push_back(value);
  }
  return words;
}

constexpr const char* kNetworkOfPlugins =
    "NCCL_IB_GID_INDEX=auto NCCL_NET_PLUGIN=none NCCL_IB_QPS_PER_CONNECTION=4 NCCL_IB_SPLIT_DATA_ON_QPS=0 "
    "NCCL_IBEXT_DISABLE=0 OMPI_MCA_btl=tcp,self ";

/// Variables of one backend of the MoE benchmark, with a space behind; the batch shell resolves those in them.
std::string backend_variables(const std::string& backend) {
  if (backend == "nixl_ep")
    return std::string(kNetworkOfPlugins) + "EP_SUPPRESS_NCCL_CHECK=1 NCCL_GIN_TYPE=3 ";
  if (backend == "nccl_ep")
    return std::string(kNetworkOfPlugins) +
           "NCCL_GIN_TYPE=3 EP_SKIP_DEEPEP_PREIMPORT=1 "
           "LD_LIBRARY_PATH=/opt/nccl-ep-build/lib:$LD_LIBRARY_PATH ";
  if (backend == "deepep_hybrid" || backend == "hybrid" || backend == "hybrid_ep") {
    const std::string headers =
        "/usr/local/ucx-nixl/include:/usr/local/nixl/include:/usr/local/nixl/include/gpu/ucx:$CPATH";
    return fmt::format(
        "NCCL_IB_GID_INDEX=auto NUM_OF_TOKENS_PER_CHUNK_DISPATCH_API=64 "
        "NUM_OF_TOKENS_PER_CHUNK_COMBINE_API=64 NUM_OF_TOKENS_PER_CHUNK_PREPROCESSING_API=64 "
        "CPATH={0} CPLUS_INCLUDE_PATH={0} ",
        headers);
  }
  return {};
}

/// Words that mean themselves between the quotes of bash -c "...".
std::string inner(const std::vector<std::string>& words) {
  return in_double_quotes(shell_words(words));
}

std::string moe_command(const Case& one) {
  const TestDefinition& test = one.definition;
  std::string line;
  for (const Scalar& value : test.find("deepep_versions")->values) {
    const std::string backend = to_text(value);
    if (!line.empty()) line += " && ";
    line += backend_variables(backend) + inner({"python", test.text("benchmark_root") + "/benchmark.py",
                                                test.text("config_file_path"), backend});
  }
  return line;
}

std::vector<std::string> script_fields(const std::string& subtest) {
  if (subtest == "test_internode")
    return {"num_processes", "num_tokens",         "hidden",      "num_topk_groups",
            "num_topk",      "pressure_test_mode", "num_experts", "test_ll_compatibility"};
  if (subtest == "test_intranode")
    return {"num_processes", "num_tokens", "hidden", "num_topk", "num_experts", "allow_mnnvl"};
  if (subtest == "test_low_latency")
    return {"num_processes", "num_tokens",     "hidden",     "num_topk",      "num_experts",
            "allow_mnnvl",   "disable_nvlink", "use_logfmt", "pressure_test", "shrink_test"};
  return {"num_processes",
          "num_sms",
          "num_qps",
          "num_allocated_qps",
          "num_gpu_timeout_secs",
          "num_cpu_timeout_secs",
          "sl_idx",
          "num_tokens",
          "hidden",
          "num_topk",
          "num_experts",
          "do_cpu_sync",
          "allow_hybrid_mode",
          "allow_multiple_reduction",
          "prefer_overlap_with_compute",
          "deterministic",
          "seed",
          "skip_check",
          "skip_perf_test",
          "do_pressure_test",
          "reuse_elastic_buffer",
          "test_first_only",
          "unbalanced_ratio",
          "precise_unbalanced_ratio",
          "masked_ratio",
          "dump_profile_traces",
          "ignore_local_traffic"};
}

std::string scripts_command(const Case& one, std::int64_t num_nodes) {
  const TestDefinition& test = one.definition;
  const std::string subtest = test.text("subtest_name");
  const bool elastic = subtest == "test_ep";
  std::string root = test.text(elastic ? "elastic_tests_root" : "legacy_tests_root");
  if (root.empty()) root = test.text("deep_ep_root") + (elastic ? "/tests/elastic" : "/tests/legacy");
  std::vector<std::string> words = {fmt::format("{}/{}.py", root, subtest)};
  for (const std::string& field : script_fields(subtest)) {
    const Argument* argument = test.find(field);
    if (argument == nullptr || test.text(field).empty()) continue;
    if (const bool* flag = std::get_if<bool>(&argument->values.front())) {
      if (*flag) words.push_back(option(field));
      continue;
    }
    words.push_back(option(field));
    words.push_back(test.text(field));
  }
  add_extra(one, words);
  // These are resolved on the node.
  return fmt::format(
      "torchrun --nnodes={} --nproc_per_node=1 --rdzv_id=\\${{SLURM_JOB_ID:-0}} --rdzv_backend=c10d "
      "--rdzv_endpoint=\\${{MASTER_ADDR}}:\\${{MASTER_PORT}} {}",
      num_nodes, inner(words));
}

}  // namespace

bool in_container(const Case& one) {
  return !one.definition.text("docker_image_url").empty();
}

bool needs_etcd(const Case& one) {
  const Argument* backends = one.definition.find("deepep_versions");
  return backends != nullptr &&
         std::any_of(backends->values.begin(), backends->values.end(), [](const Scalar& value) {
           const std::string name = to_text(value);
           return name == "deepep_hybrid" || name == "hybrid" || name == "hybrid_ep";
         });
}

std::vector<std::string> job_command(const Case& one, const std::string& shunt, const std::string& folder) {
  const TestDefinition& test = one.definition;
  std::vector<std::string> words;
  switch (test.workload) {
    case Workload::deepep_benchmark:
    case Workload::deepep_scripts:
    case Workload::moe_benchmark:
      words = own_all_to_all(one, shunt, folder);
      break;
    case Workload::nccl_test:
      return nccl_words(one);
    case Workload::shunt_all_to_all:
    case Workload::shunt_transport:
    case Workload::shunt_layer: {
      const bool transport = test.workload == Workload::shunt_transport;
      words = {shunt, "bench",
               transport                                ? "transport"
               : test.workload == Workload::shunt_layer ? "layer"
                                                        : "alltoall"};
      for (std::string& word : own_options(one)) words.push_back(std::move(word));
      if (test.workload == Workload::shunt_layer)
        words.insert(words.end(), {"--jsonl", folder + "/shunt.jsonl"});
      else
        add_files(folder, words);
      break;
    }
    case Workload::shunt_plan:
      words = {shunt, "plan"};
      for (const Scalar& word : test.find("args")->values) words.push_back(to_text(word));
      break;
    case Workload::command:
      if (const Argument* argv = test.find("argv"))
        for (const Scalar& word : argv->values) words.push_back(to_text(word));
      else
        words = {"sh", "-c", test.text("command")};
      break;
  }
  add_extra(one, words);
  return words;
}

std::vector<std::string> local_command(const Case& one, const TestEntry& entry, const System& system,
                                       const std::string& shunt, const std::string& folder) {
  std::vector<std::string> words = job_command(one, shunt, folder);
  const Workload workload = one.definition.workload;
  if (!is_cloudai_ep(one) && workload != Workload::shunt_all_to_all &&
      workload != Workload::shunt_transport && workload != Workload::shunt_layer)
    return words;
  const std::int64_t ranks = one.num_nodes * ranks_per_node(one, entry, system);
  const std::int64_t nodes = pretended_nodes(one, ranks);
  std::vector<std::string> world = {"--ranks", fmt::format("{}", ranks)};
  if (nodes > 1) world.insert(world.end(), {"--nodes", fmt::format("{}", nodes)});
  words.insert(words.begin() + 3, world.begin(), world.end());
  return words;
}

std::string container_command(const Case& one, std::int64_t num_nodes, const std::string& folder) {
  const TestDefinition& test = one.definition;
  std::string line;
  for (const std::string& word : test.nsys) line += word + " ";
  switch (test.workload) {
    case Workload::deepep_benchmark:
      // The batch shell resolves both variables, once for all nodes.
      return line + fmt::format(
                        "torchrun --nnodes={} --nproc_per_node=1 --rdzv_id=$RANDOM --rdzv_backend=c10d "
                        "--rdzv_endpoint=$head_node_ip:29500 {}",
                        num_nodes,
                        inner({fmt::format("/workspace/dp-benchmark/benchmark/benchmark{}.py",
                                           test.text("mode") == "standard" ? "" : "_ll"),
                               folder + "/config.yaml"}));
    case Workload::deepep_scripts:
      return line + scripts_command(one, num_nodes);
    case Workload::moe_benchmark:
      return line + moe_command(one);
    default:
      return line + inner(job_command(one, "shunt", folder));
  }
}

std::string config_yaml(const Case& one) {
  const TestDefinition& test = one.definition;
  const bool moe = test.workload == Workload::moe_benchmark;
  constexpr std::array<const char*, 8> kLeftOut = {"docker_image_url", "benchmark_root", "mode",
                                                   "deepep_versions",  "num_sms",        "num_qps_per_rank",
                                                   "config_file_path", "results_dir"};
  std::vector<std::string> lines = {fmt::format("# {} Benchmark Configuration", moe ? "MoE" : "DeepEP"),
                                    "# Generated by CloudAI", ""};
  if (moe) lines.push_back("benchmark_type: " + in_quotes(test.text("mode")));
  for (const Argument& argument : test.cmd_args) {
    if (std::find(kLeftOut.begin(), kLeftOut.end(), argument.name) != kLeftOut.end()) continue;
    std::vector<std::string> values;
    for (const Scalar& value : argument.values) values.push_back(to_quoted(value));
    lines.push_back(argument.list ? fmt::format("{}: [{}]", argument.name, fmt::join(values, ", "))
                                  : fmt::format("{}: {}", argument.name, values.front()));
  }
  return fmt::format("{}", fmt::join(lines, "\n"));
}

std::string success_check(const Case& one, const std::string& folder) {
  const std::string file = shell_word(folder + "/stdout.txt");
  switch (one.definition.workload) {
    case Workload::nccl_test:
      return fmt::format("grep -q \"Avg bus bandwidth\" {} && echo 1 || echo 0", file);
    case Workload::deepep_benchmark:
      if (in_container(one))
        return fmt::format("grep -q \"global_bw\\|deepep_time\" {} && echo 1 || echo 0", file);
      break;
    case Workload::deepep_scripts:
      if (in_container(one))
        return fmt::format(
            "grep -Eq \"\\[testing\\]|dispatch|combine|passed|tuning|Best\" {} && echo 1 || echo 0", file);
      break;
    case Workload::moe_benchmark:
      if (in_container(one))
        return fmt::format(
            "grep -Eq \"global_bw|RDMA BW \\(GB/s\\)|NVLink BW \\(GB/s\\)|Bus BW \\(GB/s\\)|"
            "Global BW \\(GB/s\\)\" {} && echo 1 || echo 0",
            file);
      break;
    default:
      break;
  }
  // Ours say by their status how they ended.
  return "[ $? -eq 0 ] && echo 1 || echo 0";
}

}  // namespace shunt::scenario
