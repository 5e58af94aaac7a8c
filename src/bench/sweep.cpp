#include <shunt/bench/sweep.h>

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <set>

#include <fmt/format.h>

#include <shunt/core/error.h>
#include <shunt/core/host.h>

namespace shunt::bench {
namespace {

template <class... Args>
[[noreturn]] void refuse(fmt::format_string<Args...> text, Args&&... args) {
  throw Error(Errc::invalid_argument, fmt::format(text, std::forward<Args>(args)...));
}

std::string sweep_name(RoutingWork work) {
  return work == RoutingWork::capacity ? "capacity" : "pack";
}

bool takes_one_expert(const std::string& gate) {
  return gate == "top1" || gate == "compat-top1";
}

/// A file of results that grows by whole lines.
class SweepFile {
 public:
  /// Reads what is there. Errors: Errc::invalid_argument where it is not what a sweep wrote, or its last line not the
  /// beginning of that.
  explicit SweepFile(const std::string& path) : path_(path) {
    std::int64_t whole = 0;
    std::ifstream in(path, std::ios::binary);
    std::string line;
    std::int64_t number = 1;
    for (; std::getline(in, line) && !in.eof(); ++number) {
      whole += static_cast<std::int64_t>(line.size()) + 1;
      require_ours(line, true, number);
      remember(line);
    }
    cut_ = !line.empty() && in.eof() ? static_cast<std::int64_t>(line.size()) : 0;
    if (cut_ > 0) require_ours(line, false, number);
    whole_ = whole;
  }
  ~SweepFile() {
    if (descriptor_ >= 0) close(descriptor_);
  }
  SweepFile(const SweepFile&) = delete;
  SweepFile& operator=(const SweepFile&) = delete;

  [[nodiscard]] bool holds(const std::string& key) const { return done_.count(key) > 0; }
  [[nodiscard]] std::int64_t cut_bytes() const { return cut_; }

  void open_to_append() {
    const std::filesystem::path folder = std::filesystem::path(path_).parent_path();
    std::error_code error;
    if (!folder.empty()) std::filesystem::create_directories(folder, error);
    descriptor_ = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    if (descriptor_ < 0 || (cut_ > 0 && ftruncate(descriptor_, whole_) != 0)) fail();
  }

  void append(const Record& record) {
    const std::string line = record.to_json() + "\n";
    std::size_t written = 0;
    while (written < line.size()) {
      const ssize_t bytes = write(descriptor_, line.data() + written, line.size() - written);
      if (bytes < 0 && errno == EINTR) continue;
      if (bytes < 0) fail();
      written += static_cast<std::size_t>(bytes);
    }
    if (fsync(descriptor_) != 0 && errno != EINVAL) fail();
  }

 private:
  /// A sweep writes its context and results with the key "sweep".
  void require_ours(const std::string& line, bool whole, std::int64_t number) const {
    constexpr std::string_view kContext = "{\"record\":\"context\"";
    constexpr std::string_view kResult = "{\"record\":\"result\"";
    const auto begins = [&](std::string_view start) {
      const std::size_t length = whole ? start.size() : std::min(start.size(), line.size());
      return line.compare(0, length, start.substr(0, length)) == 0;
    };
    const bool result = begins(kResult) && (!whole || line.find("\"sweep\":\"") != std::string::npos);
    if (begins(kContext) || result) return;
    refuse(
        "{}:{}: no line of a sweep; --output takes a new file or one that a sweep has written (nothing was "
        "changed)",
        path_, number);
  }

  [[noreturn]] void fail() const {
    throw Error(Errc::io, fmt::format("cannot write {}: {}", path_, std::strerror(errno)));
  }

  /// Lines are ours, so the keys stand as Record writes them.
  void remember(const std::string& line) {
    constexpr std::string_view kPoint = "\"point\":\"";
    const std::size_t start = line.find(kPoint);
    if (start == std::string::npos || line.find("\"status\":\"ok\"") == std::string::npos) return;
    const std::size_t from = start + kPoint.size();
    const std::size_t end = line.find('"', from);
    if (end != std::string::npos) done_.insert(line.substr(from, end - from));
  }

  std::string path_;
  std::set<std::string> done_;
  std::int64_t whole_ = 0, cut_ = 0;
  int descriptor_ = -1;
};

double now_seconds() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

/// What both old sweeps wrote, under their names, beside the fields of the benchmark.
void add_sweep_fields(Record& record, const RoutingPoint& point, const std::string& impl) {
  const double now = now_seconds();
  record.set("sweep", sweep_name(point.work))
      .set("point", point_key(point, impl))
      .set("timestamp", now)
      .set("ts", now)
      .set("git_sha", git_revision())
      .set("backend", impl)
      .set("strategy", point.gate)
      .set("tokens", point.tokens)
      .set("experts", std::int64_t{point.num_experts})
      .set("hidden", point.hidden)
      .set("k", std::int64_t{point.top_k})
      .set("requested_k", std::int64_t{point.top_k});
}

std::string line_of(const RoutingResult& result, const RoutingRow& row) {
  const RoutingPoint& p = result.point;
  std::string text = fmt::format("{:>7} tokens {:>6} hidden {:>4} experts top-{:<2}", p.tokens, p.hidden,
                                 p.num_experts, result.requested_k);
  if (p.work == RoutingWork::capacity)
    text += fmt::format(" cf {:<5} drop {:.6f}", p.capacity_factor, result.avg_drop_rate);
  return text + fmt::format("  {:<8} {:>10.3f} ms {:>8.2f} GiB/s{}\n", row.impl, row.ms.mean,
                            static_cast<double>(result.strict_bytes()) / row.ms.mean * 1e3 / (1 << 30),
                            row.correct ? "" : "  # wrong: " + row.reason);
}

}  // namespace

std::vector<RoutingPoint> sweep_points(const SweepOptions& options) {
  const bool capacity = options.point.work == RoutingWork::capacity;
  if (!capacity && options.point.work != RoutingWork::routing) refuse("a sweep is of pack or of capacity");
  if (options.tokens.empty() || options.hidden.empty() || options.experts.empty() || options.top_k.empty() ||
      (capacity && options.capacity_factors.empty()))
    refuse("an axis of the sweep has no values");
  const std::vector<double> factors = capacity ? options.capacity_factors : std::vector<double>{1.0};
  const std::vector<std::int32_t> ks =
      takes_one_expert(options.point.gate) ? std::vector<std::int32_t>{1} : options.top_k;
  std::vector<RoutingPoint> points;
  for (const std::int64_t tokens : options.tokens) {
    for (const std::int64_t hidden : options.hidden) {
      for (const std::int32_t experts : options.experts) {
        for (const std::int32_t k : ks) {
          for (const double factor : factors) {
            RoutingPoint point = options.point;
            point.tokens = tokens;
            point.hidden = hidden;
            point.num_experts = experts;
            point.top_k = k;
            point.capacity_factor = factor;
            if (point.threads == 0) point.threads = available_cores();
            check_point(point);
            points.push_back(std::move(point));
          }
        }
      }
    }
  }
  return points;
}

std::string point_key(const RoutingPoint& p, const std::string& impl) {
  std::string key = fmt::format(
      "{} {} isa={} tokens={} hidden={} experts={} topk={} dtype={} gate={} weighted={} seed={} threads={}",
      sweep_name(p.work), impl, impl == "simd" ? isa_name(pack_kernels().isa) : impl, p.tokens, p.hidden,
      p.num_experts, p.top_k, dtype_name(p.dtype), p.gate, p.weighted ? 1 : 0, p.seed, p.threads);
  if (p.work == RoutingWork::capacity)
    key += fmt::format(" cf={} formula={} renorm={}", p.capacity_factor, capacity_formula_name(p.formula),
                       static_cast<int>(p.renormalise));
  if (p.temperature != 1) key += fmt::format(" temperature={}", p.temperature);
  if (p.balance_steps > 0) key += fmt::format(" balance_steps={}", p.balance_steps);
  return key;
}

SweepReport run_sweep(const SweepOptions& options, const std::vector<std::string>& command,
                      const BenchOutput& output) {
  const std::vector<RoutingPoint> points = sweep_points(options);
  SweepReport report;
  SweepFile file(options.output);
  const auto say = [&output](const std::string& text) {
    if (output.text) output.text(text);
  };
  if (file.cut_bytes() > 0)
    say(fmt::format("# {}: a last line of {} bytes without an end is {}\n", options.output, file.cut_bytes(),
                    options.dry_run ? "there" : "taken away"));
  bool begun = false;
  for (std::size_t i = 0; i < points.size(); ++i) {
    RoutingPoint point = points[i];
    std::vector<std::string> wanted;
    for (const std::string& impl : point.impls) {
      if (file.holds(point_key(point, impl)))
        ++report.skipped;
      else
        wanted.push_back(impl);
    }
    if (wanted.empty()) continue;
    point.impls = wanted;
    if (options.dry_run) {
      for (const std::string& impl : wanted) say(point_key(point, impl) + "\n");
      continue;
    }
    if (output.progress)
      output.progress(static_cast<double>(i) / static_cast<double>(points.size()),
                      point_key(point, wanted.front()));
    if (!begun) {
      file.open_to_append();
      file.append(context_record(command));
      begun = true;
    }
    RoutingResult result;
    try {
      result = measure_point(point);
    } catch (const Error& error) {
      if (error.code() != Errc::out_of_memory) throw;
      for (const std::string& impl : wanted) {
        Record record("result");
        record.set("status", "skipped").set("reason", error.what());
        add_sweep_fields(record, point, impl);
        file.append(record);
      }
      say(fmt::format("# skipped: {}\n", error.what()));
      continue;
    }
    const std::vector<Record> records = routing_records(result);
    for (std::size_t r = 0; r < records.size(); ++r) {
      Record record = records[r];
      if (result.rows[r].impl == "copy") continue;  // its share stands in the others
      add_sweep_fields(record, point, result.rows[r].impl);
      if (point.work == RoutingWork::capacity) record.set("elapsed_ms", result.rows[r].ms.mean);
      file.append(record);
      ++report.measured;
      say(line_of(result, result.rows[r]));
    }
    report.failed = report.failed || result.failed;
  }
  if (output.progress) output.progress(1, "done");
  say(fmt::format("# {}{} results, {} were there already; {}\n", options.dry_run ? "dry run: " : "",
                  report.measured, report.skipped, options.output));
  return report;
}

}  // namespace shunt::bench
