#include "templates.h"

#include <algorithm>
#include <array>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <shunt/core/error.h>
#include <shunt/core/nearest.h>

namespace shunt::scenario {
namespace {

constexpr double kMany = 1e9;
constexpr FieldKind kFlag = FieldKind::flag;
constexpr FieldKind kWhole = FieldKind::whole;
constexpr FieldKind kNumber = FieldKind::number;
constexpr FieldKind kText = FieldKind::text;
constexpr FieldKind kChoice = FieldKind::choice;
constexpr FieldKind kTexts = FieldKind::texts;

constexpr Field kImage = {"docker_image_url", kText, nullptr, 0, 0, "", "image, or path of a .sqsh file"};

// The order is that of config.yaml.
constexpr std::array kDeepEpBenchmark = {
    kImage,
    Field{"mode", kChoice, "standard", 0, 0, "standard|low_latency",
          "packed and for throughput, or padded and split"},
    Field{"tokens", kWhole, "1024", 1, kMany, "", "tokens per rank"},
    Field{"num_experts", kWhole, "256", 1, 65536, "", "experts of all ranks"},
    Field{"num_topk", kWhole, "8", 1, 1024, "", "experts of a token"},
    Field{"hidden_size", kWhole, "7168", 1, 1 << 20, "", "elements of a token"},
    Field{"data_type", kChoice, "bfloat16", 0, 0, "bfloat16|fp8", "of tokens"},
    Field{"allow_nvlink_for_low_latency", kFlag, "false", 0, 0, "",
          "low-latency mode may use links of a node"},
    Field{"allow_mnnvl", kFlag, "false", 0, 0, "", "links of a node may reach other nodes"},
    Field{"round_scale", kFlag, "false", 0, 0, "", "fp8 scales are powers of two"},
    Field{"use_ue8m0", kFlag, "false", 0, 0, "", "fp8 scales are stored as exponents"},
    Field{"num_warmups", kWhole, "20", 0, 1e6, "", "untimed iterations"},
    Field{"num_iterations", kWhole, "50", 1, 1e6, "", "timed iterations"},
    Field{"shuffle_columns", kFlag, "false", 0, 0, "", "experts are numbered in another order"},
    Field{"use_kineto_profiler", kFlag, "false", 0, 0, "", "also a profile"},
    Field{"enable_tuning", kFlag, nullptr, 0, 0, "", "search for the best configuration first"},
    Field{"num_sms", kWhole, "24", 0, 1024, "", "multiprocessors that communicate"},
    Field{"num_qps_per_rank", kWhole, "12", 0, 4096, "", "queue pairs of a rank"},
    Field{"config_file_path", kText, "/tmp/config.yaml", 0, 0, "", "inside the container"},
    Field{"results_dir", kText, "/workspace/dp-benchmark/results", 0, 0, "", "inside the container"},
};

constexpr std::array kMoeBenchmark = {
    kImage,
    Field{"benchmark_root", kText, "/workspace/DeepEP/benchmark", 0, 0, "", "inside the container"},
    Field{"mode", kChoice, "standard", 0, 0, "standard|low_latency",
          "packed and for throughput, or padded and split"},
    Field{"deepep_versions", kTexts, "legacy,elastic", 0, 0,
          "legacy|elastic|nixl_ep|uccl_ep|nccl_ep|deepep_hybrid|hybrid|hybrid_ep",
          "backends, one after the other"},
    Field{"tokens", kWhole, "1024", 1, kMany, "", "tokens per rank"},
    Field{"num_experts", kWhole, "256", 1, 65536, "", "experts of all ranks"},
    Field{"num_topk", kWhole, "8", 1, 1024, "", "experts of a token"},
    Field{"hidden_size", kWhole, "7168", 1, 1 << 20, "", "elements of a token"},
    Field{"data_type", kChoice, "bfloat16", 0, 0, "bfloat16|fp8", "of tokens"},
    Field{"allow_nvlink_for_low_latency", kFlag, "false", 0, 0, "",
          "low-latency mode may use links of a node"},
    Field{"allow_mnnvl", kFlag, "false", 0, 0, "", "links of a node may reach other nodes"},
    Field{"round_scale", kFlag, "false", 0, 0, "", "fp8 scales are powers of two"},
    Field{"use_ue8m0", kFlag, "false", 0, 0, "", "fp8 scales are stored as exponents"},
    Field{"benchmark_combine", kFlag, "true", 0, 0, "", "time combine too"},
    Field{"num_warmups", kWhole, "20", 0, 1e6, "", "untimed iterations"},
    Field{"num_iterations", kWhole, "50", 1, 1e6, "", "timed iterations"},
    Field{"shuffle_columns", kFlag, "false", 0, 0, "", "experts are numbered in another order"},
    Field{"use_kineto_profiler", kFlag, "false", 0, 0, "", "also a profile"},
    Field{"enable_tuning", kFlag, "false", 0, 0, "", "search for the best configuration first"},
    Field{"num_sms", kWhole, "24", 0, 1024, "", "multiprocessors that communicate"},
    Field{"num_qps_per_rank", kWhole, "12", 0, 4096, "", "queue pairs of a rank"},
    Field{"v2_num_sms", kWhole, "12", 0, 1024, "", "multiprocessors of elastic"},
    Field{"v2_num_qps", kWhole, "0", 0, 4096, "", "queue pairs of elastic"},
    Field{"v2_prefer_overlap_with_compute", kFlag, "false", 0, 0, "", "of elastic"},
    Field{"config_file_path", kText, "/tmp/config.yaml", 0, 0, "", "inside the container"},
    Field{"results_dir", kText, "/workspace/DeepEP/results", 0, 0, "", "inside the container"},
};

constexpr std::array kDeepEpScripts = {
    kImage,
    Field{"subtest_name", kChoice, "test_internode", 0, 0,
          "test_internode|test_intranode|test_low_latency|test_ep", "program of DeepEP"},
    Field{"deep_ep_root", kText, "/workspace/DeepEP", 0, 0, "", "inside the container"},
    Field{"legacy_tests_root", kText, nullptr, 0, 0, "", "inside the container"},
    Field{"elastic_tests_root", kText, nullptr, 0, 0, "", "inside the container"},
    Field{"python_executable", kText, "python", 0, 0, "", "accepted, and not used by CloudAI either"},
    Field{"num_processes", kWhole, "8", 1, 1024, "", "ranks of a node"},
    Field{"num_tokens", kWhole, "4096", 1, kMany, "", "tokens per rank"},
    Field{"hidden", kWhole, "7168", 1, 1 << 20, "", "elements of a token"},
    Field{"num_topk", kWhole, "8", 1, 1024, "", "experts of a token"},
    Field{"num_experts", kWhole, "256", 1, 65536, "", "experts of all ranks"},
    Field{"num_topk_groups", kWhole, nullptr, 1, 65536, "", "nodes that a token may go to"},
    Field{"allow_mnnvl", kFlag, "false"},
    Field{"test_ll_compatibility", kFlag, "false"},
    Field{"pressure_test_mode", kWhole, "0", 0, 2},
    Field{"pressure_test", kFlag, "false"},
    Field{"shrink_test", kFlag, "false"},
    Field{"disable_nvlink", kFlag, "false"},
    Field{"use_logfmt", kFlag, "false"},
    Field{"num_sms", kWhole, "0", 0, 1024},
    Field{"num_qps", kWhole, "0", 0, 4096},
    Field{"num_allocated_qps", kWhole, "0", 0, 4096},
    Field{"num_gpu_timeout_secs", kWhole, "100", 0, 1e6},
    Field{"num_cpu_timeout_secs", kWhole, "100", 0, 1e6},
    Field{"sl_idx", kWhole, "0", 0, 15},
    Field{"do_cpu_sync", kWhole, "1", 0, 1},
    Field{"allow_hybrid_mode", kWhole, "1", 0, 1},
    Field{"allow_multiple_reduction", kWhole, "1", 0, 1},
    Field{"prefer_overlap_with_compute", kWhole, "0", 0, 1},
    Field{"deterministic", kFlag, "false"},
    Field{"seed", kWhole, "0", 0, kMany},
    Field{"skip_check", kFlag, "false"},
    Field{"skip_perf_test", kFlag, "false"},
    Field{"do_pressure_test", kFlag, "false"},
    Field{"reuse_elastic_buffer", kFlag, "false"},
    Field{"test_first_only", kFlag, "false"},
    Field{"unbalanced_ratio", kNumber, "1.0", 0, kMany},
    Field{"precise_unbalanced_ratio", kFlag, "false"},
    Field{"masked_ratio", kNumber, "0.0", 0, 1},
    Field{"dump_profile_traces", kText, ""},
    Field{"ignore_local_traffic", kFlag, "false"},
};

constexpr const char* kNcclPrograms =
    "all_reduce_perf_mpi|all_gather_perf_mpi|alltoall_perf_mpi|alltoallv_perf_mpi|broadcast_perf_mpi|"
    "gather_perf_mpi|hypercube_perf_mpi|reduce_perf_mpi|reduce_scatter_perf_mpi|scatter_perf_mpi|"
    "sendrecv_perf_mpi|bisection_perf_mpi|all_reduce_perf|all_gather_perf|alltoall_perf|alltoallv_perf|"
    "broadcast_perf|gather_perf|hypercube_perf|reduce_perf|reduce_scatter_perf|scatter_perf|sendrecv_perf|"
    "bisection_perf";

constexpr std::array kNcclTest = {
    kImage,
    Field{"subtest_name", kChoice, "all_reduce_perf_mpi", 0, 0, kNcclPrograms, "program of nccl-tests"},
    Field{"nthreads", kWhole, "1", 1, 1024},
    Field{"ngpus", kWhole, "1", 1, 1024},
    Field{"minbytes", kText, "32M"},
    Field{"maxbytes", kText, "32M"},
    Field{"stepbytes", kText, "1M"},
    Field{"op", kChoice, "sum", 0, 0, "sum|prod|min|max|avg|all"},
    Field{"datatype", kChoice, "float", 0, 0,
          "int8|uint8|int32|uint32|int64|uint64|half|float|double|bfloat16|fp8_e4m3|fp8_e5m2|all"},
    Field{"root", kWhole, "0", 0, 65536},
    Field{"iters", kWhole, "20", 1, 1e6},
    Field{"warmup_iters", kWhole, "5", 0, 1e6},
    Field{"agg_iters", kWhole, "1", 1, 1e6},
    Field{"average", kWhole, "1", 0, 3},
    Field{"parallel_init", kWhole, "0", 0, 1},
    Field{"check", kWhole, "1", 0, 1e6},
    Field{"blocking", kWhole, "0", 0, 2},
    Field{"cudagraph", kWhole, "0", 0, 1e6},
    Field{"stepfactor", kWhole, nullptr, 2, 1024},
    Field{"use_deepep_matrix", kFlag, "false", 0, 0, "",
          "traffic of the benchmark that this test depends on"},
    Field{"alltoallv_matrix_container_path", kText, "/tmp/traffic_matrix.txt", 0, 0, "",
          "inside the container"},
    Field{"min_busbw", kNumber, nullptr, 0, kMany, "", "GB/s that the average must reach"},
};

// Ours: the options of the command, with _ for -. What is not given is the command's default.
constexpr std::array kShuntAllToAll = {
    Field{"preset", kText, nullptr, 0, 0, "", "model shape"},
    Field{"experts", kWhole, nullptr, 1, 65536, "", "experts of all ranks"},
    Field{"topk", kWhole, nullptr, 1, 1024, "", "experts of a token"},
    Field{"hidden", kWhole, nullptr, 1, 1 << 20, "", "elements of a token"},
    Field{"tokens", kWhole, nullptr, 1, 8192, "", "tokens per rank"},
    Field{"dp_size", kWhole, nullptr, 1, 1024, "", "consecutive ranks with the same tokens"},
    Field{"in_dtype", kChoice, nullptr, 0, 0, "bfloat16|float16|float32|float8_e4m3fn|float8_e5m2"},
    Field{"out_dtype", kChoice, nullptr, 0, 0, "bfloat16|float16|float32"},
    Field{"transport", kText, nullptr, 0, 0, "", "see shunt doctor"},
    Field{"provider", kText, nullptr, 0, 0, "", "of transport ofi"},
    Field{"layout", kChoice, nullptr, 0, 0, "packed|padded"},
    Field{"alignment", kWhole, nullptr, 1, 4096, "", "rows"},
    Field{"max_recv_rows", kWhole, nullptr, 1, kMany},
    Field{"routing", kText, nullptr, 0, 0, "", "how tokens choose experts"},
    Field{"methods", kText, nullptr, 0, 0, "", "names with commas between"},
    Field{"warmup", kWhole, nullptr, 0, 1e6, "", "untimed iterations of a block"},
    Field{"iterations", kWhole, nullptr, 1, 500, "", "timed iterations of a block"},
    Field{"rounds", kWhole, nullptr, 1, 100000, "", "blocks of each method"},
    Field{"max_seconds", kNumber, nullptr, 0.1, 1e6, "", "measuring time"},
    Field{"seed", kWhole, nullptr, 0, 9e15},
    Field{"deadline", kWhole, nullptr, 1, 86400000, "", "ms that a rank waits for another"},
    Field{"device", kChoice, nullptr, 0, 0, "cpu|cuda|auto"},
    Field{"peers", kFlag, nullptr, 0, 0, "", "also methods of other libraries"},
};

constexpr std::array kShuntLayer = {
    Field{"tokens", kWhole, nullptr, 1, kMany, "", "tokens per rank"},
    Field{"hidden", kWhole, nullptr, 1, 1 << 20, "", "elements of a token"},
    Field{"ffn", kWhole, nullptr, 1, 1 << 20, "", "inner elements of an expert"},
    Field{"experts", kWhole, nullptr, 1, 65536},
    Field{"top_k", kWhole, nullptr, 1, 1024},
    Field{"activation", kText, nullptr},
    Field{"shared_experts", kWhole, nullptr, 0, 1024},
    Field{"dtype", kText, nullptr},
    Field{"threads", kWhole, nullptr, 1, 1024},
    Field{"impl", kText, nullptr},
    Field{"backward", kFlag, nullptr},
    Field{"seed", kWhole, nullptr, 0, 9e15},
    Field{"max_seconds", kNumber, nullptr, 0.1, 1e6},
};

constexpr std::array kShuntTransport = {
    Field{"min_bytes", kText, nullptr, 0, 0, "", "smallest size, with K, M or G"},
    Field{"max_bytes", kText, nullptr, 0, 0, "", "largest size"},
    Field{"factor", kWhole, nullptr, 2, 1024},
    Field{"ops", kText, nullptr, 0, 0, "", "names with commas between"},
    Field{"transport", kText, nullptr},
    Field{"provider", kText, nullptr},
    Field{"window", kWhole, nullptr, 1, 65536},
    Field{"warmup", kWhole, nullptr, 0, 1e6},
    Field{"iterations", kWhole, nullptr, 1, 500},
    Field{"rounds", kWhole, nullptr, 1, 100000},
    Field{"max_seconds", kNumber, nullptr, 0.1, 1e6},
    Field{"seed", kWhole, nullptr, 0, 9e15},
    Field{"deadline", kWhole, nullptr, 1, 86400000},
};

constexpr std::array kShuntPlan = {
    Field{"args", kTexts, nullptr, 0, 0, "", "words after shunt plan"},
};

constexpr std::array kCommand = {
    kImage,
    Field{"argv", kTexts, nullptr, 0, 0, "", "program and its arguments, not read by a shell"},
    Field{"command", kText, nullptr, 0, 0, "", "a line for sh -c"},
    Field{"results", kText, nullptr, 0, 0, "", "file of metrics that it writes: JSON, or JSON Lines"},
};

constexpr std::array kTemplates = {
    Template{"DeepEPBenchmark", Workload::deepep_benchmark, "CloudAI's DeepEP benchmark", kDeepEpBenchmark},
    Template{"DeepEP", Workload::deepep_scripts, "DeepEP's own test programs (CloudAI 1.7 on)",
             kDeepEpScripts},
    Template{"DeepEP", Workload::deepep_benchmark, "the same name up to CloudAI 1.6", kDeepEpBenchmark},
    Template{"MoEBenchmark", Workload::moe_benchmark, "CloudAI's benchmark of several backends",
             kMoeBenchmark},
    Template{"NcclTest", Workload::nccl_test, "a program of nccl-tests", kNcclTest},
    Template{"ShuntAllToAll", Workload::shunt_all_to_all, "shunt bench alltoall", kShuntAllToAll},
    Template{"ShuntLayer", Workload::shunt_layer, "shunt bench layer", kShuntLayer},
    Template{"ShuntTransport", Workload::shunt_transport, "shunt bench transport", kShuntTransport},
    Template{"ShuntPlan", Workload::shunt_plan, "shunt plan", kShuntPlan},
    Template{"Command", Workload::command, "any program", kCommand},
};

bool has_field(const Template& one, const std::string& key) {
  return std::any_of(one.fields.begin(), one.fields.end(),
                     [&key](const Field& field) { return key == field.name; });
}

}  // namespace

std::span<const Template> templates() {
  return kTemplates;
}

std::vector<std::string> template_names() {
  std::vector<std::string> names;
  for (const Template& one : kTemplates)
    if (std::find(names.begin(), names.end(), one.name) == names.end()) names.emplace_back(one.name);
  return names;
}

const Template& find_template(const std::string& name, const std::vector<std::string>& keys) {
  std::vector<const Template*> found;
  for (const Template& one : kTemplates)
    if (name == one.name) found.push_back(&one);
  if (found.empty()) {
    const std::vector<std::string> names = template_names();
    throw Error(Errc::invalid_argument,
                fmt::format("test_template_name \"{}\" is unknown; did you mean \"{}\"? There are {}", name,
                            nearest_name(name, names), fmt::join(names, ", ")));
  }
  if (found.size() == 1) return *found.front();
  std::string newer;
  std::string older;
  for (const std::string& key : keys) {
    const bool in_newer = has_field(*found[0], key);
    const bool in_older = has_field(*found[1], key);
    if (in_newer && !in_older) newer = key;
    if (in_older && !in_newer) older = key;
  }
  if (!newer.empty() && !older.empty())
    throw Error(
        Errc::invalid_argument,
        fmt::format("{} has the key \"{}\" of CloudAI 1.7 and \"{}\" of CloudAI 1.6 and before, which "
                    "are different tests; keep those of one",
                    name, newer, older));
  return older.empty() ? *found[0] : *found[1];
}

Argument default_argument(const Field& field) {
  Argument argument{.name = field.name, .values = {}, .list = field.kind == kTexts, .place = {}};
  const std::string text = field.standard;
  switch (field.kind) {
    case kFlag:
      argument.values = {text == "true"};
      break;
    case kWhole:
      argument.values = {static_cast<std::int64_t>(std::stoll(text))};
      break;
    case kNumber:
      argument.values = {std::stod(text)};
      break;
    case kText:
    case kChoice:
      argument.values = {text};
      break;
    case kTexts:
      for (std::size_t begin = 0; begin <= text.size();) {
        const std::size_t comma = std::min(text.find(',', begin), text.size());
        argument.values.emplace_back(text.substr(begin, comma - begin));
        begin = comma + 1;
      }
      break;
  }
  return argument;
}

void check_together(const TestDefinition& test, const Place& place) {
  const auto place_of = [&test, &place](const char* name) {
    const Argument* argument = test.find(name);
    return argument != nullptr && argument->place.line > 0 ? argument->place : place;
  };
  for (const auto& [many, few] :
       {std::pair{"num_experts", "num_topk"}, {"experts", "topk"}, {"experts", "top_k"}}) {
    const Argument* experts = test.find(many);
    const Argument* topk = test.find(few);
    if (experts == nullptr || topk == nullptr) continue;
    for (const Scalar& k : topk->values)
      for (const Scalar& e : experts->values)
        if (std::get<std::int64_t>(k) > std::get<std::int64_t>(e))
          fail_at(place_of(few), fmt::format("{} = {} is more than {} = {}; a token cannot have more experts "
                                             "than there are",
                                             few, to_text(k), many, to_text(e)));
  }
  if (test.flag("use_ue8m0") && !test.flag("round_scale"))
    fail_at(place_of("use_ue8m0"),
            "use_ue8m0 = true stores scales as exponents and needs round_scale = true");
  if (test.flag("use_deepep_matrix"))
    fail_at(place_of("use_deepep_matrix"),
            "use_deepep_matrix = true is not there yet; name the file, nccl_matrix.txt of a benchmark, in "
            "extra_env_vars.NCCL_TESTS_ALLTOALLV_MATRIX_FILE");
  if (test.workload == Workload::command) {
    const bool argv = test.find("argv") != nullptr;
    const bool line = test.find("command") != nullptr;
    if (argv == line)
      fail_at(place, fmt::format("a Command needs argv or command in [cmd_args], {}",
                                 argv ? "not both" : "and has neither"));
  }
  if (test.workload == Workload::shunt_plan && test.find("args") == nullptr)
    fail_at(place, "a ShuntPlan needs args in [cmd_args], the words after `shunt plan`");
}

}  // namespace shunt::scenario
