#include <shunt/bench/pack_bench.h>

#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <memory>

#include <fmt/format.h>

#include <shunt/bench/workload.h>
#include <shunt/core/error.h>
#include <shunt/pack/cuda.h>
#include <shunt/pack/kernels.h>

#include "pack_device.h"
#include "result_files.h"

namespace shunt::bench {
namespace {

/// Rows of expert results that differ; the others repeat them.
constexpr std::int64_t kResultRows = 97;
/// Tokens of a point whose rows and sums are compared.
constexpr std::int64_t kCheckedTokens = 256;

std::size_t at(std::int64_t i) {
  return static_cast<std::size_t>(i);
}

template <class... Args>
[[noreturn]] void refuse(fmt::format_string<Args...> text, Args&&... args) {
  throw Error(Errc::invalid_argument, fmt::format(text, std::forward<Args>(args)...));
}

bool is_wide(DType dtype) {
  return dtype == DType::f32 || dtype == DType::f16 || dtype == DType::bf16;
}

/// Values of a token, or of an expert's result, in `dtype`.
std::vector<std::byte> make_rows(std::uint64_t seed, std::int32_t group, std::int64_t rows,
                                 std::int64_t hidden, DType dtype) {
  const std::int64_t bytes = hidden * dtype_bytes(dtype);
  std::vector<std::byte> all(at(rows * bytes));
  std::vector<float> values(at(hidden));
  for (std::int64_t row = 0; row < rows; ++row) {
    fill_token(seed, group, row, hidden, values.data());
    for (std::int64_t h = 0; h < hidden; ++h)
      store_element(dtype, all.data() + row * bytes, h, values[at(h)]);
  }
  return all;
}

/// Everything of one point on one device.
class PackPoint {
 public:
  PackPoint(const PackBenchOptions& options, const Point& point, PackDevice& device)
      : options_(options),
        point_(point),
        device_(device),
        routing_(
            Router(point.routing, {point.tokens, 1, point.num_experts, point.top_k}, point.seed).route(0)),
        selections_(routing_.num_tokens * point.top_k),
        live_(selections_ - std::count(routing_.ids.begin(), routing_.ids.end(), -1)) {
    const DType payload = options.payload;
    row_bytes_ = point.hidden * dtype_bytes(payload);
    scales_.type = is_fp8(payload) ? options.scale : ScaleType::none;
    scales_.block = kScaleBlock;
    num_scales_ = scales_.type == ScaleType::none ? 0 : (point.hidden + kScaleBlock - 1) / kScaleBlock;
    scale_row_bytes_ = num_scales_ * scale_bytes(scales_.type);
    check_memory();
    fill();
  }

  std::vector<PackRow> measure() {
    std::vector<PackRow> rows;
    const std::int64_t plan_bytes = selections_ * 4 * 2 + live_ * 4 + std::int64_t{point_.num_experts} * 8;
    const std::int64_t token_bytes = routing_.num_tokens * point_.hidden * dtype_bytes(options_.in_dtype);
    const std::int64_t gathered = live_ * (row_bytes_ + scale_row_bytes_);
    const std::int64_t result_bytes = point_.hidden * dtype_bytes(options_.out_dtype);
    const auto phase = [&](const char* name, std::int64_t bytes, const std::function<void()>& work) {
      PackRow row;
      row.preset = point_.preset;
      row.num_experts = point_.num_experts;
      row.top_k = point_.top_k;
      row.hidden = point_.hidden;
      row.tokens = routing_.num_tokens;
      row.routing = point_.routing_label;
      row.phase = name;
      row.bytes = bytes;
      const std::vector<double> samples =
          device_.time_us(work, options_.warmup, options_.iterations, options_.cold);
      row.us = summarize(samples);
      rows.push_back(std::move(row));
    };
    // The copy first: what it writes, the others overwrite.
    phase("copy", 2 * live_ * row_bytes_, [&] { device_.copy(slots_, rows_, live_ * row_bytes_); });
    phase("pack", plan_bytes + token_bytes + gathered, [&] {
      device_.make_plan(input_, plan_, workspace_);
      device_.gather(gather_);
    });
    phase("plan", plan_bytes, [&] { device_.make_plan(input_, plan_, workspace_); });
    phase("gather", token_bytes + gathered, [&] { device_.gather(gather_); });
    phase("scatter", 2 * gathered, [&] { device_.scatter(scatter_); });
    phase("combine", (live_ + routing_.num_tokens) * result_bytes + selections_ * 8,
          [&] { device_.combine(combine_); });
    std::rotate(rows.begin(), rows.begin() + 1, rows.end());
    const std::string wrong = check();
    for (PackRow& row : rows) {
      row.correct = wrong.empty();
      row.reason = wrong;
    }
    return rows;
  }

 private:
  void check_memory() const {
    const std::int64_t needed = routing_.num_tokens * point_.hidden *
                                    (dtype_bytes(options_.in_dtype) + dtype_bytes(options_.out_dtype)) +
                                2 * selections_ * (row_bytes_ + scale_row_bytes_) +
                                selections_ * point_.hidden * dtype_bytes(options_.out_dtype);
    const std::int64_t free = device_.free_bytes();
    if (free > 0 && needed > free / 10 * 9)
      throw Error(
          Errc::out_of_memory,
          fmt::format(
              "{} tokens of {} (top-{}, hidden {}) need {} bytes, but {} are free; fewer --tokens or a "
              "smaller --hidden need less",
              routing_.num_tokens, point_.preset, point_.top_k, point_.hidden, needed, free));
  }

  template <class T>
  T* numbers(std::int64_t count) {
    return static_cast<T*>(device_.allocate(count * static_cast<std::int64_t>(sizeof(T))));
  }
  template <class T>
  T* numbers(const std::vector<T>& values) {
    T* data = numbers<T>(static_cast<std::int64_t>(values.size()));
    device_.write(data, values.data(), static_cast<std::int64_t>(values.size() * sizeof(T)));
    return data;
  }

  void fill() {
    const std::int64_t tokens = routing_.num_tokens;
    const std::int64_t hidden = point_.hidden;
    const DType out = options_.out_dtype;
    tokens_ = make_rows(point_.seed, 0, tokens, hidden, options_.in_dtype);
    results_ = make_rows(point_.seed, 1, kResultRows, hidden, out);
    const std::int64_t result_bytes = hidden * dtype_bytes(out);
    auto* results = static_cast<std::byte*>(device_.allocate(selections_ * result_bytes));
    for (std::int64_t row = 0; row < selections_; row += kResultRows)
      device_.write(results + row * result_bytes, results_.data(),
                    std::min(kResultRows, selections_ - row) * result_bytes);
    rows_ = device_.allocate(selections_ * row_bytes_);
    slots_ = device_.allocate(selections_ * row_bytes_);

    input_ = {.selections = {.ids = numbers(routing_.ids), .num_tokens = tokens, .top_k = point_.top_k},
              .num_experts = point_.num_experts,
              .max_rows = selections_};
    plan_ = {.counts = numbers<std::int32_t>(point_.num_experts),
             .starts = numbers<std::int32_t>(point_.num_experts + 1),
             .positions = numbers<std::int32_t>(selections_),
             .selections = numbers<std::int32_t>(selections_),
             .status = numbers<cuda::PlanStatus>(1)};
    workspace_ = device_.allocate(cuda::plan_workspace_bytes(input_));

    scales_.data = device_.allocate(selections_ * scale_row_bytes_);
    cuda::Scales slot_scales = scales_;
    slot_scales.data = device_.allocate(selections_ * scale_row_bytes_);
    gather_.from = {numbers(tokens_), options_.in_dtype, hidden * dtype_bytes(options_.in_dtype)};
    gather_.positions = plan_.positions;
    gather_.num_tokens = tokens;
    gather_.top_k = point_.top_k;
    gather_.hidden = hidden;
    gather_.to = {rows_, options_.payload, row_bytes_};
    gather_.scales = scales_;
    scatter_.from = gather_.to;
    scatter_.destinations = plan_.selections;
    scatter_.num_rows = selections_;
    scatter_.hidden = hidden;
    scatter_.to = {slots_, options_.payload, row_bytes_};
    scatter_.from_scales = scales_;
    scatter_.to_scales = slot_scales;
    combine_.rows = {results, out, result_bytes};
    combine_.positions = plan_.positions;
    combine_.weights = numbers(routing_.weights);
    combine_.num_tokens = tokens;
    combine_.top_k = point_.top_k;
    combine_.hidden = hidden;
    combine_.out = {device_.allocate(tokens * result_bytes), out, result_bytes};
  }

  /// Compares what the device holds with the ids and the scalar kernels: all positions, and the rows, slots and sums of
  /// some tokens. Empty where all is right.
  std::string check() {
    std::vector<std::int64_t> next(at(point_.num_experts) + 1, 0);
    for (const std::int32_t id : routing_.ids)
      if (id >= 0) ++next[at(id) + 1];
    for (std::size_t e = 1; e < next.size(); ++e) next[e] += next[e - 1];
    std::vector<std::int32_t> positions(at(selections_));
    device_.read(positions.data(), plan_.positions, selections_ * 4);
    for (std::int64_t i = 0; i < selections_; ++i) {
      const std::int32_t id = routing_.ids[at(i)];
      const std::int64_t expected = id < 0 ? -1 : next[at(id)]++;
      if (positions[at(i)] != expected)
        return fmt::format("selection {} of token {} is in row {}, not {}", i % point_.top_k,
                           i / point_.top_k, positions[at(i)], expected);
    }
    const std::int64_t step = std::max<std::int64_t>(routing_.num_tokens / kCheckedTokens, 1);
    for (std::int64_t token = 0; token < routing_.num_tokens; token += step) {
      std::string wrong = check_rows(token, positions);
      if (wrong.empty()) wrong = check_sum(token, positions);
      if (!wrong.empty()) return wrong;
    }
    return {};
  }

  std::string check_rows(std::int64_t token, const std::vector<std::int32_t>& positions) {
    const std::byte* from = tokens_.data() + token * point_.hidden * dtype_bytes(options_.in_dtype);
    std::vector<std::byte> row(at(row_bytes_)), scales(at(scale_row_bytes_)),
        got(at(row_bytes_ + scale_row_bytes_));
    if (options_.payload == options_.in_dtype)
      std::memcpy(row.data(), from, row.size());
    else
      pack_kernels(Isa::scalar)
          .quantise(from, options_.in_dtype, point_.hidden, {options_.payload, scales_.type, kScaleBlock},
                    {row.data(), scales.data()});
    const auto differs = [&](const cuda::DeviceRows& rows, const cuda::Scales& of, std::int64_t index) {
      device_.read(got.data(), static_cast<std::byte*>(rows.data) + index * row_bytes_, row_bytes_);
      if (scale_row_bytes_ > 0)
        device_.read(got.data() + row_bytes_, static_cast<std::byte*>(of.data) + index * scale_row_bytes_,
                     scale_row_bytes_);
      return !std::equal(row.begin(), row.end(), got.begin()) ||
             !std::equal(scales.begin(), scales.end(), got.begin() + row_bytes_);
    };
    for (std::int64_t k = 0; k < point_.top_k; ++k) {
      const std::int64_t i = token * point_.top_k + k;
      if (positions[at(i)] < 0) continue;
      if (differs(gather_.to, gather_.scales, positions[at(i)]))
        return fmt::format("row {} is not that of token {}", positions[at(i)], token);
      if (differs(scatter_.to, scatter_.to_scales, i))
        return fmt::format("slot {} of token {} is not its row", k, token);
    }
    return {};
  }

  std::string check_sum(std::int64_t token, const std::vector<std::int32_t>& positions) {
    const std::int64_t bytes = point_.hidden * dtype_bytes(options_.out_dtype);
    std::vector<std::byte> expected(at(bytes)), got(at(bytes));
    std::vector<const void*> rows;
    for (std::int64_t k = 0; k < point_.top_k; ++k) {
      const std::int64_t row = positions[at(token * point_.top_k + k)];
      rows.push_back(row < 0 ? nullptr : results_.data() + row % kResultRows * bytes);
    }
    pack_kernels(Isa::scalar)
        .weighted_sum({.rows = rows.data(),
                       .weights = routing_.weights.data() + token * point_.top_k,
                       .num_rows = point_.top_k,
                       .hidden = point_.hidden,
                       .row_dtype = options_.out_dtype,
                       .out_dtype = options_.out_dtype,
                       .out = expected.data()});
    device_.read(got.data(), static_cast<std::byte*>(combine_.out.data) + token * bytes, bytes);
    return got == expected ? ""
                           : fmt::format("the sum of token {} differs from that of the scalar kernel", token);
  }

  const PackBenchOptions& options_;
  const Point& point_;
  PackDevice& device_;
  Routing routing_;
  std::int64_t selections_;
  std::int64_t live_;
  std::int64_t row_bytes_ = 0, num_scales_ = 0, scale_row_bytes_ = 0;
  std::vector<std::byte> tokens_, results_;
  void* rows_ = nullptr;
  void* slots_ = nullptr;
  void* workspace_ = nullptr;
  cuda::Scales scales_;
  cuda::PlanInput input_;
  cuda::Plan plan_;
  cuda::Gather gather_;
  cuda::Scatter scatter_;
  cuda::Combine combine_;
};

std::vector<Point> wanted_points(const PackBenchOptions& options) {
  AllToAllBenchOptions as;
  as.ranks = 1;
  const bool sized = options.num_experts != 0 || options.top_k != 0 || options.hidden != 0;
  as.presets = options.presets;
  if (as.presets.empty() && !sized) as.presets = {"r1"};
  as.num_experts = options.num_experts;
  as.top_k = options.top_k;
  as.hidden = options.hidden;
  as.tokens = options.tokens;
  as.routings = options.routings;
  as.seed = options.seed;
  return expand_points(as, nullptr, 1);
}

void check_options(const PackBenchOptions& o) {
  if (o.device != "auto" && o.device != "cpu" && o.device != "cuda")
    refuse("--device: \"{}\" is not a device; allowed: auto, cpu, cuda", o.device);
  if (!is_wide(o.in_dtype))
    refuse("--in-dtype is {}; allowed: bfloat16, float16, float32", dtype_name(o.in_dtype));
  if (!is_wide(o.out_dtype))
    refuse("--out-dtype is {}; allowed: bfloat16, float16, float32", dtype_name(o.out_dtype));
  if (!is_fp8(o.payload) && o.payload != o.in_dtype)
    refuse("--payload is {}; allowed: the dtype of the tokens, {}, or float8_e4m3fn, float8_e5m2",
           dtype_name(o.payload), dtype_name(o.in_dtype));
  if (o.warmup < 0 || o.iterations < 1) refuse("--iterations is {}; allowed: 1 or more", o.iterations);
}

}  // namespace

PackBenchReport run_pack_bench(const PackBenchOptions& options, const std::vector<std::string>& command,
                               const BenchOutput& output) {
  check_options(options);
  const std::vector<Point> points = wanted_points(options);
  NewFile file{.path = options.jsonl};
  if (!file.path.empty()) file.make();

  PackBenchReport report;
  const std::string missing = options.device == "cpu" ? "" : cuda::unavailable_reason();
  report.device = options.device == "cpu" || !missing.empty() ? "cpu" : "cuda";
  if (!missing.empty()) report.note = "CUDA kernels cannot run here (" + missing + "), so this is the CPU";
  std::size_t done = 0;
  for (const Point& point : points) {
    if (output.progress)
      output.progress(static_cast<double>(done++) / static_cast<double>(points.size()),
                      fmt::format("{}, {} tokens", point.preset, point.tokens));
    // A device for each point: its memory goes with it.
    const auto device =
        report.device == "cuda" ? make_cuda_pack_device({options.max_blocks}) : make_cpu_pack_device();
    report.description = device->description();
    for (PackRow& row : PackPoint(options, point, *device).measure()) {
      report.failed = report.failed || !row.correct;
      report.rows.push_back(std::move(row));
    }
  }
  if (output.progress) output.progress(1, "done");
  if (output.text) output.text(format_pack_table(report, options));
  if (file.descriptor >= 0) {
    Record context = context_record(command);
    context.set("seed", static_cast<std::int64_t>(options.seed))
        .set("device", report.device)
        .set("device_description", report.description)
        .set("warmup_iterations", options.warmup)
        .set("cold", options.cold)
        .set("max_blocks", std::int64_t{options.max_blocks});
    std::string lines = context.to_json() + "\n";
    for (const Record& record : pack_records(report, options)) lines += record.to_json() + "\n";
    file.append(lines);
    close(file.descriptor);
  }
  return report;
}

}  // namespace shunt::bench
