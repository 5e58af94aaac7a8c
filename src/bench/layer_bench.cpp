#include <shunt/bench/layer_bench.h>

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <functional>
#include <numeric>

#include <fmt/format.h>

#include <shunt/core/error.h>
#include <shunt/core/host.h>
#include <shunt/transport/collectives.h>
#include <shunt/transport/launch.h>

#include "layer_work.h"
#include "result_files.h"

namespace shunt::bench {
namespace {

using Clock = std::chrono::steady_clock;
constexpr std::int64_t kFewestIterations = 3;

std::size_t at(std::int64_t i) {
  return static_cast<std::size_t>(i);
}

template <class... Args>
[[noreturn]] void refuse(fmt::format_string<Args...> text, Args&&... args) {
  throw Error(Errc::invalid_argument, fmt::format(text, std::forward<Args>(args)...));
}

/// Forward, backward, then the parts of MoeStep.
constexpr std::size_t kTimes = 10;
using Times = std::array<double, kTimes>;

double timed(const std::function<void()>& call) {
  const auto start = Clock::now();
  call();
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

Times times_of(double forward, double backward, const MoeStep& step) {
  return {forward,
          backward,
          step.route_ms,
          step.dispatch_ms,
          step.ffn_ms,
          step.combine_ms,
          step.back_dispatch_ms,
          step.back_ffn_ms,
          step.back_route_ms,
          step.back_combine_ms};
}

void fill(LayerRow& row, const std::vector<Times>& times) {
  std::vector<double> forward, backward, total;
  Times mean{};
  for (const Times& one : times) {
    forward.push_back(one[0]);
    backward.push_back(one[1]);
    total.push_back(one[0] + one[1]);
    for (std::size_t i = 0; i < kTimes; ++i) mean[i] += one[i] / static_cast<double>(times.size());
  }
  row.forward_ms = summarize(forward);
  row.backward_ms = summarize(backward);
  row.total_ms = summarize(total);
  row.route_ms = mean[2];
  row.dispatch_ms = mean[3];
  row.ffn_ms = mean[4];
  row.combine_ms = mean[5];
  row.back_dispatch_ms = mean[6];
  row.back_ffn_ms = mean[7];
  row.back_route_ms = mean[8];
  row.back_combine_ms = mean[9];
}

bool has(const LayerPoint& point, const char* impl) {
  return std::find(point.impls.begin(), point.impls.end(), impl) != point.impls.end();
}

/// Bytes that one process needs: weights thrice (and once more for libtorch with theirs), rows and what lies between.
void check_memory(const LayerPoint& point) {
  const std::int64_t inner = point.activation == "swiglu" ? 2 * point.inner() : point.inner();
  const std::int64_t weights =
      (point.num_experts + point.shared_experts) * point.hidden * (inner + point.inner()) * 4;
  const std::int64_t rows = point.tokens * (point.top_k + point.shared_experts) * dtype_bytes(point.dtype) *
                            (4 * point.hidden + inner + point.inner());
  const std::int64_t needed =
      3 * weights + rows * point.ranks + (has(point, "torch") ? 4 * weights + 3 * rows : 0);
  const std::int64_t free = read_host_info().memory_available_bytes;
  if (free > 0 && needed > free / 10 * 9)
    throw Error(
        Errc::out_of_memory,
        fmt::format("a layer of {} experts of {} x {} for {} tokens needs about {} bytes, but {} are free; "
                    "fewer --tokens, --experts or a smaller --ffn need less",
                    point.num_experts, point.hidden, point.inner(), point.tokens, needed, free));
}

std::int64_t flops_of(const LayerPoint& point, std::int64_t rows, bool linear_router) {
  const std::int64_t inner = point.activation == "swiglu" ? 2 * point.inner() : point.inner();
  const std::int64_t expert = 2 * point.hidden * (inner + point.inner());
  const std::int64_t tokens = point.tokens * point.ranks;
  std::int64_t forward = rows * expert + tokens * point.shared_experts * expert;
  if (linear_router) forward += 2 * tokens * point.hidden * point.num_experts;
  return point.backward ? 3 * forward : forward;
}

/// In turn, iteration by iteration.
void time_all(const LayerPoint& point, std::vector<std::function<Times()>>& all,
              std::vector<LayerRow>& rows) {
  std::vector<std::vector<Times>> times(all.size());
  auto begin = Clock::now();
  for (std::int64_t i = -point.warmup; i < point.iterations; ++i) {
    if (i == 0) begin = Clock::now();
    for (std::size_t one = 0; one < all.size(); ++one) {
      const Times took = all[one]();
      if (i >= 0) times[one].push_back(took);
    }
    const std::chrono::duration<double> spent = Clock::now() - begin;
    if (i + 1 >= kFewestIterations && spent.count() > point.max_seconds) break;
  }
  for (std::size_t one = 0; one < all.size(); ++one) fill(rows[one], times[one]);
}

LayerResult measure_process(const LayerPoint& point) {
  LayerResult result;
  result.point = point;
  MoeLayer layer(layer_config(point));
  LayerData mine(point, 0, layer);
  const auto run_mine = [&] {
    Times times{};
    times[0] = timed([&] { run_forward(layer, point, mine); });
    if (point.backward) times[1] = timed([&] { run_backward(layer, point, mine); });
    return times_of(times[0], times[1], layer.step());
  };
  std::vector<std::function<Times()>> all;
  std::unique_ptr<LayerData> theirs;
  std::unique_ptr<TorchWork> torch;
  for (const std::string& impl : point.impls) {
    LayerRow row;
    row.impl = impl;
    if (impl == "shunt") {
      row.by = matmul_name(layer.config().backend);
      (void)run_mine();
      row.reason = check_against_double(point, layer, mine);
      all.emplace_back(run_mine);
    } else {
      theirs = std::make_unique<LayerData>(mine);
      torch = make_torch_layer(point, layer, *theirs);
      row.by = fmt::format("libtorch {}: {}", torch_plugin().version, torch->formulation(0));
      run_torch(*torch, TorchLayer::kForward);
      if (point.backward) run_torch(*torch, TorchLayer::kBackward);
      run_torch(*torch, TorchLayer::kRead);
      if (has(point, "shunt")) {
        if (!layer.step().num_rows) (void)run_mine();
        row.reason = check_against(point, *theirs, mine, true);
      }
      all.emplace_back([&point, work = torch.get()] {
        Times times{};
        times[0] = timed([&] { run_torch(*work, TorchLayer::kForward); });
        if (point.backward) times[1] = timed([&] { run_torch(*work, TorchLayer::kBackward); });
        return times;
      });
    }
    row.correct = row.reason.empty();
    result.failed = result.failed || !row.correct;
    result.rows.push_back(std::move(row));
  }
  if (layer.step().num_rows == 0) run_forward(layer, point, mine);
  result.flops = flops_of(point, layer.step().num_rows, true);
  result.drop_rate = layer.step().drop_rate;
  time_all(point, all, result.rows);
  return result;
}

/// What the ranks write for their parent.
struct RankReport {
  std::int64_t iterations, rows;
  double drop_rate;
  std::array<char, 200> reason;
};

/// Memory that forked ranks share with this process.
class SharedPages {
 public:
  explicit SharedPages(std::size_t bytes)
      : bytes_(bytes),
        memory_(mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0)) {
    if (memory_ == MAP_FAILED)
      throw Error(Errc::out_of_memory, fmt::format("{} bytes for the times of ranks", bytes));
  }
  ~SharedPages() { munmap(memory_, bytes_); }
  SharedPages(const SharedPages&) = delete;
  SharedPages& operator=(const SharedPages&) = delete;
  [[nodiscard]] std::byte* data() const noexcept { return static_cast<std::byte*>(memory_); }

 private:
  std::size_t bytes_;
  void* memory_;
};

LayerResult measure_ranks(const LayerPoint& point) {
  LayerResult result;
  result.point = point;
  // Each rank's tokens through one process: what the ranks' results are compared with.
  std::vector<LayerData> expected;
  {
    LayerPoint alone = point;
    alone.threads = 1;
    MoeLayer layer(layer_config(alone));
    for (std::int32_t rank = 0; rank < point.ranks; ++rank) {
      expected.emplace_back(alone, rank, layer);
      run_forward(layer, alone, expected.back());
      if (point.backward) run_backward(layer, alone, expected.back());
      if (rank == 0) {
        const std::string wrong = check_against_double(alone, layer, expected.back());
        if (!wrong.empty()) throw Error(Errc::check_failed, wrong);
      }
    }
  }
  const auto ranks = at(point.ranks), iterations = at(point.iterations);
  const SharedPages reports(ranks * sizeof(RankReport));
  const SharedPages samples(ranks * iterations * sizeof(Times));
  const SharedPages stop(sizeof(std::int64_t));
  auto* const of_ranks = reinterpret_cast<RankReport*>(reports.data());
  auto* const times = reinterpret_cast<Times*>(samples.data());
  auto* const stops = reinterpret_cast<volatile std::int64_t*>(stop.data());
  const auto outcomes = run_ranks({.ranks = point.ranks}, [&](Transport& transport) {
    constexpr std::chrono::minutes kDeadline{2};
    const auto rank = at(transport.world().rank);
    RankReport& report = of_ranks[rank];
    MoeLayer layer(layer_config(point), &transport);
    const auto collectives = transport.make_collectives(64, Clock::now() + kDeadline);
    LayerData data = expected[rank];
    std::fill(data.out.begin(), data.out.end(), std::byte{0xff});
    std::fill(data.grad_x.begin(), data.grad_x.end(), std::byte{0xff});
    const auto begin = Clock::now();
    auto timed_from = begin;
    for (std::int64_t i = -point.warmup; i < point.iterations; ++i) {
      if (i == 0) timed_from = Clock::now();
      const std::chrono::duration<double> spent = Clock::now() - timed_from;
      if (rank == 0) *stops = i >= kFewestIterations && spent.count() > point.max_seconds ? 1 : 0;
      collectives->barrier(kDeadline);
      if (*stops != 0) break;
      Times took{};
      took[0] = timed([&] { run_forward(layer, point, data); });
      if (point.backward) took[1] = timed([&] { run_backward(layer, point, data); });
      if (i < 0) continue;
      times[rank * iterations + at(i)] = times_of(took[0], took[1], layer.step());
      report.iterations = i + 1;
    }
    report.rows = layer.step().num_rows;
    report.drop_rate = layer.step().drop_rate;
    const std::string wrong = check_against(point, data, expected[rank], false);
    std::copy_n(wrong.begin(), std::min(wrong.size(), report.reason.size() - 1), report.reason.begin());
    return 0;
  });
  LayerRow row;
  row.impl = "shunt";
  row.by = matmul_name(parse_matmul_backend(point.backend));
  std::int64_t rows = 0;
  for (const RankOutcome& outcome : outcomes)
    if (outcome.exit_status != 0)
      throw Error(outcome.code, fmt::format("rank {}: {}", outcome.rank, outcome.message));
  for (std::size_t rank = 0; rank < ranks; ++rank) {
    rows += of_ranks[rank].rows;
    result.drop_rate += of_ranks[rank].drop_rate / point.ranks;
    if (of_ranks[rank].reason[0] != 0 && row.reason.empty())
      row.reason = fmt::format("rank {}: {}", rank, of_ranks[rank].reason.data());
  }
  std::vector<Times> slowest(at(of_ranks[0].iterations));
  for (std::size_t rank = 0; rank < ranks; ++rank)
    for (std::size_t i = 0; i < slowest.size(); ++i)
      for (std::size_t part = 0; part < kTimes; ++part)
        slowest[i][part] = std::max(slowest[i][part], times[rank * iterations + i][part]);
  fill(row, slowest);
  row.correct = row.reason.empty();
  result.failed = !row.correct;
  result.flops = flops_of(point, rows, true);
  result.rows.push_back(std::move(row));
  return result;
}

}  // namespace

void check_layer_point(const LayerPoint& point) {
  const auto positive = [](const char* option, std::int64_t value) {
    if (value < 1) refuse("{} {}: allowed are whole numbers from 1", option, value);
  };
  positive("--tokens", point.tokens);
  positive("--hidden", point.hidden);
  positive("--ffn", point.inner());
  positive("--iters", point.iterations);
  positive("--ranks", point.ranks);
  if (point.impls.empty()) refuse("--impl: at least one of shunt, torch is needed");
  for (const std::string& impl : point.impls) {
    if (impl != "shunt" && impl != "torch") refuse("--impl \"{}\": allowed are shunt, torch", impl);
    if (impl == "torch" && point.ranks > 1)
      refuse("--impl torch is of one process; with --ranks only shunt is");
    if (impl == "torch" && (point.gate != "softk" || point.capacity_factor > 0))
      refuse("--impl torch has the gate softk without a capacity");
  }
  if (std::count(point.impls.begin(), point.impls.end(), "shunt") > 1 ||
      std::count(point.impls.begin(), point.impls.end(), "torch") > 1)
    refuse("--impl names one twice");
  if (point.gate == "hash" || point.gate == "compat-hash")
    refuse("--gate {}: tokens of this benchmark have no ids", point.gate);
  (void)make_gate(point.gate, point.num_experts, point.top_k);
  (void)parse_activation(point.activation);
  (void)parse_matmul_backend(point.backend);
  if (point.dtype != DType::f32 && point.dtype != DType::bf16)
    refuse("--dtype {}: allowed are float32, bfloat16", dtype_name(point.dtype));
  if (!(point.capacity_factor >= 0))
    refuse("--capacity-factor {}: allowed are numbers above 0", point.capacity_factor);
}

LayerResult measure_layer(const LayerPoint& asked) {
  check_layer_point(asked);
  LayerPoint point = asked;
  point.ffn = asked.inner();
  if (point.threads == 0)
    point.threads =
        static_cast<std::int32_t>(std::max<std::int64_t>(1, sysconf(_SC_NPROCESSORS_ONLN) / point.ranks));
  check_memory(point);
  return point.ranks > 1 ? measure_ranks(point) : measure_process(point);
}

LayerResult run_layer_bench(const LayerBenchOptions& options, const std::vector<std::string>& command,
                            const BenchOutput& output) {
  check_layer_point(options.point);
  NewFile file{.path = options.jsonl};
  if (!file.path.empty()) file.make();
  try {
    if (output.progress) output.progress(0, fmt::format("layer of {} tokens", options.point.tokens));
    LayerResult result = measure_layer(options.point);
    std::string lines = context_record(command).to_json() + "\n";
    for (const Record& record : layer_records(result)) lines += record.to_json() + "\n";
    if (file.descriptor >= 0) {
      file.append(lines);
      close(file.descriptor);
    }
    if (output.progress) output.progress(1, "done");
    if (output.text) output.text(format_layer_table(result));
    return result;
  } catch (...) {
    file.remove();
    throw;
  }
}

}  // namespace shunt::bench
