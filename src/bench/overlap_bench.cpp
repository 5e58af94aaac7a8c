#include <shunt/bench/overlap_bench.h>

#include <unistd.h>

#include <algorithm>
#include <utility>

#include <fmt/format.h>

#include <shunt/core/error.h>
#include <shunt/core/record.h>

#include "gpu/choose.h"
#include "gpu/cublaslt_gemm.h"
#include "gpu/method.h"
#include "overlap_methods.h"
#include "result_files.h"

namespace shunt::bench {
namespace {

template <class... Args>
[[noreturn]] void refuse(fmt::format_string<Args...> text, Args&&... args) {
  throw Error(Errc::invalid_argument, fmt::format(text, std::forward<Args>(args)...));
}

void check_options(const OverlapBenchOptions& o) {
  if (o.device != "auto" && o.device != "cpu" && o.device != "cuda")
    refuse("--device: \"{}\" is not a device; allowed: auto, cpu, cuda", o.device);
  if (o.gemm_dtype != DType::f32 && o.gemm_dtype != DType::bf16)
    refuse("--gemm-dtype is {}; allowed: float32, bfloat16", dtype_name(o.gemm_dtype));
  constexpr std::int64_t kMost = std::int64_t{1} << 18;
  for (const auto& [name, value] : {std::pair<const char*, std::int64_t>{"rows", o.gemm_rows},
                                    {"columns", o.gemm_columns},
                                    {"depth", o.gemm_depth}})
    if (value < 0 || value > kMost)
      refuse("the {} of --gemm are {}; allowed: 1 to {}, or auto", name, value, kMost);
  for (const std::string& method : o.points.methods)
    refuse("--methods: \"{}\" is not allowed; allowed: nothing, since the four ways are compared", method);
}

Record make_context(const std::vector<std::string>& command, const OverlapBenchOptions& options,
                    const OverlapBenchReport& report) {
  Record context = context_record(command);
  context.set("seed", static_cast<std::int64_t>(options.points.seed))
      .set("device", report.device)
      .set("library", report.library)
      .set("required_rounds", options.points.rounds)
      .set("block_ms", options.points.block_ms)
      .set("warmup_iterations", options.points.warmup)
      .set("max_seconds", options.points.max_seconds);
  return context;
}

/// Sets the device and what computes products there, and throws where nothing does.
void choose_library(OverlapBenchOptions& options, OverlapBenchReport& report) {
  options.points.device = options.device;
  report.note = choose_device(options.points);
  report.device = options.points.device;
  if (report.device == "cuda") {
    const std::string missing = cublaslt_unavailable();
    if (!missing.empty())
      throw Error(Errc::unavailable,
                  fmt::format("bench overlap on a GPU needs cuBLASLt for matrix products: {}", missing));
    if (!options.make_gemm) options.make_gemm = make_cublaslt_gemm;
    report.library = "cuBLASLt";
    return;
  }
  if (options.make_gemm) {
    report.library = "test";
    return;
  }
  const std::string missing = onednn_unavailable();
  if (!missing.empty())
    throw Error(Errc::unavailable,
                fmt::format("bench overlap on the CPU needs a library for matrix products: {}", missing));
  options.make_gemm = make_onednn_gemm;
  report.library = onednn_version();
}

OverlapPlan make_plan(const OverlapBenchOptions& options) {
  OverlapPlan plan{
      .rows = options.gemm_rows,
      .columns = options.gemm_columns,
      .depth = options.gemm_depth,
      .dtype = options.gemm_dtype,
      .make_step = [](const MethodContext& context) { return make_shunt_method(context, {}); },
      .step_bytes = [](const Workload& workload,
                       const MethodSettings& settings) { return shunt_bytes(workload, settings, {}); },
      .make_gemm = options.make_gemm};
  if (!options.points.own_clocks) return plan;
  const GpuTerms terms = gpu_terms(options.points);
  const auto ranks = std::make_shared<GpuRanks>(cuda_runtime(terms));
  plan.make_step = [ranks, terms](const MethodContext& context) {
    return make_gpu_shunt_method(context, *ranks, terms, {}, false);
  };
  // Device memory is the GPU's to refuse.
  plan.step_bytes = [](const Workload&, const MethodSettings&) { return std::int64_t{0}; };
  return plan;
}

/// Closes the file, and removes it where no point came to stand in it.
struct RecordFile : NewFile {
  bool keep = false;
  ~RecordFile() {
    if (descriptor < 0) return;
    if (keep)
      close(descriptor);
    else
      remove();
  }
};

}  // namespace

OverlapBenchReport run_overlap_bench(OverlapBenchOptions options, const std::vector<std::string>& command,
                                     const BenchOutput& output) {
  check_options(options);
  OverlapBenchReport report;
  choose_library(options, report);
  AllToAllBenchOptions& points = options.points;
  points.registry = overlap_methods(make_plan(options));
  points.write_files = false;
  points.inner_phases = false;
  RecordFile file;
  file.path = options.jsonl;
  // Called by the process that leads alone, so that no other one makes the file.
  points.on_point = [&](const PointResult& point) {
    if (!file.path.empty() && file.descriptor < 0) {
      file.make();
      file.append(make_context(command, options, report).to_json() + "\n");
    }
    if (file.descriptor >= 0) {
      std::string lines;
      for (const Record& record : overlap_records(point, report)) lines += record.to_json() + "\n";
      file.append(lines);
      file.keep = true;
    }
    if (output.text) output.text(format_overlap_point(point));
  };
  if (!report.note.empty() && output.text) output.text("# " + report.note + "\n");
  points.device = "cpu";  // Settled above, with a registry of our own
  if (!file.path.empty() && access(file.path.c_str(), F_OK) == 0)
    throw Error(
        Errc::io,
        fmt::format("{} exists already, and nothing is overwritten; give --jsonl another name", file.path));
  AllToAllBenchReport measured =
      run_alltoall_bench(points, command, {.text = {}, .progress = output.progress});
  report.leads = measured.leads;
  report.failed = measured.failed;
  report.status = measured.status;
  report.points = std::move(measured.points);
  for (const PointResult& point : report.points)
    for (const MethodResult& method : point.methods)
      if (method.status == "skipped")
        throw Error(Errc::unavailable,
                    fmt::format("{}, {} tokens: {} could not be measured: {}", point.point.preset,
                                point.point.tokens, method.name, method.reason));
  return report;
}

}  // namespace shunt::bench
