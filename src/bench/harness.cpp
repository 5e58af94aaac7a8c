#include "harness.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <optional>

#include <fmt/format.h>

#include <shunt/bench/timing.h>
#include <shunt/bench/verify.h>
#include <shunt/core/error.h>
#include <shunt/core/host.h>
#include <shunt/core/random.h>

#include "crossing.h"
#include "methods/dense.h"
#include "methods/shared_memory.h"
#include "probe.h"
#include "rounds.h"

namespace shunt::bench {
namespace {

constexpr std::int64_t kMaxBlockIterations = 500;
constexpr std::int64_t kInnerRounds = 5;

// The last checks and the inner phases need the rest of a point's time.
constexpr double kShareForRounds = 0.8;

/// Bytes per second of the slowest exchange worth starting, to leave out hopeless methods before they
/// allocate.
constexpr double kHopelessBytesPerSecond = 3e9;
/// The same on GPUs, where memory is that much faster.
constexpr double kHopelessBytesPerSecondOnDevice = 1e11;

std::int64_t now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now().time_since_epoch()).count();
}

/// Stores to every line what it holds already.
void write_anew(std::span<std::byte> bytes) {
  constexpr std::size_t kLine = 64;
  for (std::size_t at = 0; at < bytes.size(); at += kLine) {
    volatile std::byte& first = bytes[at];
    const std::byte held = first;
    first = held;
  }
}

/// Method::failure() in a form that ranks can gather.
struct FailureNote {
  char text[500] = {};
  bool by_peer = false;
};

FailureNote note_failure(const Method& method) {
  const Method::Failure failure = method.failure();
  FailureNote note{.by_peer = failure.by_peer};
  failure.text.copy(note.text, sizeof note.text - 1);
  return note;
}

/// The text that explains the end of a method best; empty where no rank noted any. `get` takes a note out of
/// what was gathered.
template <class Gathered, class Get>
std::string find_cause(const std::vector<Gathered>& all, const Get& get) {
  const FailureNote* cause = nullptr;
  for (const Gathered& one : all)
    if (const FailureNote& note = get(one);
        note.text[0] != '\0' && (cause == nullptr || (cause->by_peer && !note.by_peer)))
      cause = &note;
  return cause == nullptr ? std::string() : cause->text;
}

/// Puts the method's own stamps of the phase just done, where it has any, in the place of the harness's.
void take_own_span(const Method& method, std::int64_t& begin, std::int64_t& end) {
  const Method::Span span = method.own_span();
  if (span.end_ns == 0) return;
  begin = span.begin_ns;
  end = span.end_ns;
}

/// What each rank says at the end of a block; rank 0's probes and clock count for all.
struct BlockNote {
  double before_ns = -1;
  double after_ns = -1;
  std::int64_t now_ns = 0;
  std::int64_t wall_ns = 0;  ///< The timed iterations
  FailureNote failure;
};

Method::Crossed difference(const Method::Crossed& after, const Method::Crossed& before) {
  const auto less = [](std::int64_t a, std::int64_t b) { return a < 0 || b < 0 ? -1 : a - b; };
  return {.rows = less(after.rows, before.rows),
          .results = less(after.results, before.results),
          .messages = less(after.messages, before.messages)};
}

/// Sets `sum` to the sum of all ranks' values, or leaves it unknown where one is.
void add_crossed(std::int64_t& sum, std::int64_t value, bool first) {
  sum = value < 0 || (!first && sum < 0) ? -1 : (first ? 0 : sum) + value;
}

/// What each rank found in a verified iteration.
struct Verdict {
  RankStamps stamps;
  std::uint64_t hash = 0;
  bool hashed = false;
  Method::Crossed crossed;
  FailureNote wrong;
};

class PointRun {
 public:
  PointRun(Transport& transport, const Workload& workload, const PointTerms& terms,
           const MethodSettings& settings, const HarnessOptions& options)
      : transport_(transport),
        workload_(workload),
        terms_(terms),
        plan_(terms.plan),
        settings_(settings),
        options_(options),
        ranks_(static_cast<std::size_t>(transport.world().size)),
        collectives_(
            transport.make_collectives(kMaxBlockIterations * static_cast<std::int64_t>(sizeof(RankStamps)),
                                       Clock::now() + settings.deadline)),
        probe_(transport.host(), settings.deadline),
        memory_(transport.host(), workload, plan_.shared, settings.deadline),
        verifier_(workload, transport.world().rank),
        log_(plan_.specs.size(), terms.thresholds, terms.unprobed),
        inner_log_(plan_.specs.size(), terms.thresholds, terms.unprobed),
        methods_(plan_.specs.size()),
        iteration_ns_(plan_.specs.size(), 0) {}

  PointResult run() {
    describe();
    for (std::size_t i = 0; i < methods_.size(); ++i) set_up(i);
    measure_rounds();
    for (std::size_t i = 0; i < methods_.size(); ++i) verify_again(i);
    for (std::size_t i = 0; i < methods_.size(); ++i) measure_inner(i);
    for (std::size_t i = 0; i < methods_.size(); ++i) {
      MethodResult& method = result_.methods[i];
      if (method.status != "ok") continue;
      const bool apart = plan_.specs[i].inner_phases_cost;
      method.phases = log_.phases(i, method, true, options_.inner_phases && !apart);
      for (PhaseResult& phase : inner_log_.phases(i, method, false, true))
        method.phases.push_back(std::move(phase));
    }
    result_.round_trips_ns = log_.round_trips_ns();
    result_.blocks_kept = log_.kept();
    result_.blocks_dropped = log_.dropped();
    result_.seconds = elapsed(gather(now_ns())[0]);
    return std::move(result_);
  }

 private:
  template <class T>
  std::vector<T> gather(const T& mine) {
    static_assert(std::is_trivially_copyable_v<T>);
    std::vector<T> all(ranks_);
    collectives_->allgather(&mine, static_cast<std::int64_t>(sizeof(T)), all.data(), settings_.deadline);
    return all;
  }

  [[nodiscard]] double elapsed(std::int64_t now) const {
    return static_cast<double>(now - terms_.begin_ns) / 1e9;
  }

  double probe() { return options_.on_device ? -1.0 : probe_.measure(); }

  void meet() { collectives_->barrier(settings_.deadline); }

  void describe() {
    result_.point = workload_.point();
    result_.required_rounds = options_.rounds;
    result_.dispatch_bytes = workload_.dispatch_bytes();
    result_.touch_bytes = workload_.touch_bytes();
    result_.combine_bytes = workload_.combine_bytes();
    for (std::int32_t owner = 0; owner < workload_.point().ranks; ++owner)
      result_.sparse_bytes +=
          workload_.sent_rows(0, owner) * (workload_.row_bytes() + workload_.scale_bytes());
    result_.dense_bytes = dense_dispatch_bytes(workload_);
    result_.nodes = transport_.world().num_nodes();
    result_.transport = transport_.name();
    result_.provider = transport_.provider();
    result_.clock = clock_name(terms_.clock);
    for (std::size_t i = 0; i < plan_.specs.size(); ++i) {
      const MethodSpec& spec = plan_.specs[i];
      MethodResult method;
      method.name = spec.name;
      method.variant = spec.variant;
      method.kind = spec.kind;
      method.has_dispatch = spec.has_dispatch;
      method.has_combine = spec.has_combine;
      method.reason = plan_.skipped[i];
      if (!method.reason.empty()) method.status = "skipped";
      result_.methods.push_back(std::move(method));
    }
  }

  void set_up(std::size_t i) {
    MethodResult& result = result_.methods[i];
    if (result.status != "ok") return;
    FailureNote note;
    try {
      methods_[i] = plan_.specs[i].make(MethodContext{transport_, workload_, settings_, memory_});
    } catch (const Error& error) {
      // These two leave the transport usable.
      if (error.code() != Errc::out_of_memory && error.code() != Errc::unavailable) throw;
      const std::string text = error.what();
      text.copy(note.text, sizeof note.text - 1);
    }
    // What one rank cannot make, none measures.
    result.reason =
        find_cause(gather(note), [](const FailureNote& one) -> const FailureNote& { return one; });
    if (!result.reason.empty()) {
      result.status = "skipped";
      methods_[i].reset();
      return;
    }
    Method::Work work = methods_[i]->work();
    result.work = std::move(work.text);
    result.flops = work.flops;
    const StepSample cold = verified_iteration(i);
    result.cold_us[0] = cold.dispatch_us;
    result.cold_us[1] = cold.touch_us;
    result.cold_us[2] = cold.combine_us;
    result.cold_us[3] = cold.total_us;
    iteration_ns_[i] = cold.total_us * 1e3 / 2;
    const double wanted = static_cast<double>(options_.rounds) * cold.total_us / 1e6;
    if (result.status == "ok" && result.kind == MethodKind::rows && !plan_.specs[i].inner_phases_cost &&
        wanted > terms_.max_seconds / 2) {
      result.status = "skipped";
      result.reason =
          fmt::format("one iteration takes {:.0f} ms; {} rounds do not fit its share of --max-seconds",
                      cold.total_us / 1e3, options_.rounds);
    }
    if (result.status != "ok") methods_[i].reset();
  }

  /// One iteration. `verdict` not null: what was delivered is checked between the phases, outside the times.
  void iterate(Method& method, const MethodSpec& spec, RankStamps& stamps, Verdict* verdict) {
    std::string wrong;
    write_anew(method.own_tokens());
    method.ready();
    meet();
    stamps.dispatch_begin = now_ns();
    method.dispatch();
    stamps.dispatch_end = now_ns();
    take_own_span(method, stamps.dispatch_begin, stamps.dispatch_end);
    if (verdict != nullptr) {
      meet();  // one-sided methods have delivered only when all have returned
      wrong = spec.kind == MethodKind::floor ? method.check_own() : verifier_.check_rows(method.arrived());
    }
    method.ready();
    meet();
    stamps.touch_begin = now_ns();
    method.touch();
    stamps.touch_end = now_ns();
    take_own_span(method, stamps.touch_begin, stamps.touch_end);
    method.ready();
    meet();
    stamps.combine_begin = now_ns();
    method.combine();
    stamps.combine_end = now_ns();
    take_own_span(method, stamps.combine_begin, stamps.combine_end);
    stamps.inner = method.inner_times();
    // A floor's untimed preparation does not count.
    if (!spec.has_dispatch) {
      stamps.dispatch_begin = stamps.dispatch_end = 0;
      stamps.touch_begin = stamps.touch_end = 0;
    }
    if (!spec.touch_counts) stamps.touch_begin = stamps.touch_end = 0;
    if (!spec.has_combine) stamps.combine_begin = stamps.combine_end = 0;
    if (verdict == nullptr) return;
    if (method.combined() != nullptr) {
      const std::string sums = verifier_.check_combined(method.combined(), &verdict->hash, spec.presum);
      if (wrong.empty()) wrong = sums;
      verdict->hashed = true;
    }
    verdict->stamps = stamps;
    verdict->wrong = note_failure(method);
    if (verdict->wrong.text[0] == '\0') wrong.copy(verdict->wrong.text, sizeof verdict->wrong.text - 1);
  }

  StepSample verified_iteration(std::size_t i) {
    Verdict mine;
    RankStamps stamps;
    meet();
    methods_[i]->begin_block();
    const Method::Crossed before = methods_[i]->crossed();
    iterate(*methods_[i], plan_.specs[i], stamps, &mine);
    mine.crossed = difference(methods_[i]->crossed(), before);
    methods_[i]->end_block();
    const std::vector<Verdict> verdicts = gather(mine);
    MethodResult& result = result_.methods[i];
    std::vector<std::uint64_t> hashes;
    std::vector<RankStamps> all;
    for (const Verdict& verdict : verdicts) {
      all.push_back(verdict.stamps);
      if (verdict.hashed) hashes.push_back(verdict.hash);
    }
    std::string wrong =
        find_cause(verdicts, [](const Verdict& verdict) -> const FailureNote& { return verdict.wrong; });
    const std::string miscounted = check_crossing(i, verdicts);
    if (wrong.empty()) wrong = miscounted;
    result.correct = wrong.empty();
    if (!wrong.empty()) {
      result.status = "failed";
      result.reason = wrong;
    }
    if (!hashes.empty())
      result.result_hash = fmt::format(
          "{:016x}",
          hash_bytes(hashes.data(), static_cast<std::int64_t>(hashes.size() * sizeof(std::uint64_t))));
    return makespan(all, terms_.clock);
  }

  /// Sums what crossed; empty, or how that is not what the expert choices ask for.
  std::string check_crossing(std::size_t i, const std::vector<Verdict>& verdicts) {
    const MethodSpec& spec = plan_.specs[i];
    if (spec.crossing == CrossingPath::none) return {};
    Crossing& crossing = result_.methods[i].crossing;
    crossing = expect_crossing(workload_, settings_.node_of, spec.crossing, spec.presum);
    for (std::size_t r = 0; r < verdicts.size(); ++r) {
      add_crossed(crossing.row_bytes, verdicts[r].crossed.rows, r == 0);
      add_crossed(crossing.result_bytes, verdicts[r].crossed.results, r == 0);
      add_crossed(crossing.message_bytes, verdicts[r].crossed.messages, r == 0);
    }
    if (crossing.row_bytes >= 0 && crossing.row_bytes != crossing.counted_row_bytes)
      return fmt::format("{} bytes of rows crossed between nodes; the expert choices ask for {}",
                         crossing.row_bytes, crossing.counted_row_bytes);
    if (crossing.result_bytes >= 0 && crossing.counted_result_bytes >= 0 &&
        crossing.result_bytes != crossing.counted_result_bytes)
      return fmt::format("{} bytes of results crossed between nodes; the expert choices ask for {}",
                         crossing.result_bytes, crossing.counted_result_bytes);
    return {};
  }

  void verify_again(std::size_t i) {
    if (result_.methods[i].status != "ok") return;
    RankStamps unused;
    meet();
    methods_[i]->begin_block();
    iterate(*methods_[i], plan_.specs[i], unused, nullptr);
    methods_[i]->end_block();
    meet();
    methods_[i]->poison();
    verified_iteration(i);
  }

  /// One block of one method, its samples logged where the placement held.
  void measure_block(std::size_t i, Method& method, RoundLog& log) {
    const MethodSpec& spec = plan_.specs[i];
    const double fits = options_.block_ms * 1e6 / std::max(iteration_ns_[i], 1.0);
    const std::int64_t iterations =
        options_.iterations > 0
            ? std::min(options_.iterations, kMaxBlockIterations)
            : std::clamp(static_cast<std::int64_t>(fits), std::int64_t{1}, kMaxBlockIterations);
    // Long iterations too find the last method's data in the caches; one of them is enough to change that.
    const std::int64_t warmup = fits < 1 ? std::min<std::int64_t>(options_.warmup, 1) : options_.warmup;
    RankStamps unused;
    meet();
    BlockNote note;
    note.before_ns = probe();
    method.begin_block();
    for (std::int64_t n = 0; n < warmup; ++n) iterate(method, spec, unused, nullptr);
    stamps_.resize(static_cast<std::size_t>(iterations));
    const std::int64_t start = now_ns();
    for (RankStamps& stamps : stamps_) iterate(method, spec, stamps, nullptr);
    note.now_ns = now_ns();
    note.wall_ns = note.now_ns - start;
    method.end_block();
    meet();
    note.after_ns = probe();
    note.failure = note_failure(method);
    const std::vector<BlockNote> notes = gather(note);
    last_now_ns_ = notes[0].now_ns;
    const std::string failure =
        find_cause(notes, [](const BlockNote& one) -> const FailureNote& { return one.failure; });
    if (!failure.empty()) {
      result_.methods[i].status = "failed";
      result_.methods[i].reason = failure;
      return;
    }
    gathered_.resize(stamps_.size() * ranks_);
    collectives_->allgather(stamps_.data(), static_cast<std::int64_t>(stamps_.size() * sizeof(RankStamps)),
                            gathered_.data(), settings_.deadline);
    std::vector<StepSample> samples;
    std::vector<RankStamps> one(ranks_);
    for (std::size_t n = 0; n < stamps_.size(); ++n) {
      for (std::size_t r = 0; r < ranks_; ++r) one[r] = gathered_[r * stamps_.size() + n];
      samples.push_back(makespan(one, terms_.clock));
    }
    log.add(i, notes[0].before_ns, notes[0].after_ns, samples);
    iteration_ns_[i] = static_cast<double>(notes[0].wall_ns) / static_cast<double>(iterations);
  }

  void measure_rounds() {
    std::vector<std::size_t> active;
    for (std::size_t i = 0; i < methods_.size(); ++i)
      if (methods_[i] != nullptr) active.push_back(i);
    if (active.empty()) return;
    last_now_ns_ = gather(now_ns())[0];
    std::vector<std::size_t> order = active;
    for (std::uint64_t round = 0;; ++round) {
      Random random(workload_.point().seed, 0x726f756e64000000ULL + round);
      for (std::size_t n = order.size(); n > 1; --n) std::swap(order[n - 1], order[random.below(n)]);
      for (const std::size_t i : order) {
        measure_block(i, *methods_[i], log_);
        if (result_.methods[i].status != "ok") methods_[i].reset();
        // The first round is always whole, so that every method has a number.
        if (round > 0 && elapsed(last_now_ns_) > terms_.max_seconds * kShareForRounds) return;
      }
      const auto gone = [this](std::size_t i) { return methods_[i] == nullptr; };
      active.erase(std::remove_if(active.begin(), active.end(), gone), active.end());
      order.erase(std::remove_if(order.begin(), order.end(), gone), order.end());
      if (active.empty()) return;
      if (options_.progress && transport_.world().rank == 0)
        options_.progress(
            std::min(1.0, static_cast<double>(round + 1) / static_cast<double>(options_.rounds)));
      if (log_.complete(active, options_.rounds)) return;
      if (elapsed(last_now_ns_) > terms_.max_seconds * kShareForRounds) return;
    }
  }

  /// Inner phases that cost time are measured with an object of their own, after the numbers that count.
  void measure_inner(std::size_t i) {
    if (result_.methods[i].status != "ok" || !options_.inner_phases || !plan_.specs[i].inner_phases_cost)
      return;
    methods_[i].reset();
    meet();
    MethodSettings settings = settings_;
    settings.record_inner = true;
    const std::unique_ptr<Method> method =
        plan_.specs[i].make(MethodContext{transport_, workload_, settings, memory_});
    for (std::int64_t round = 0; round < std::min(options_.rounds, kInnerRounds); ++round) {
      measure_block(i, *method, inner_log_);
      if (result_.methods[i].status != "ok" || elapsed(last_now_ns_) > terms_.max_seconds) break;
    }
    meet();
  }

  Transport& transport_;
  const Workload& workload_;
  const PointTerms& terms_;
  const MethodPlan& plan_;
  const MethodSettings& settings_;
  const HarnessOptions& options_;
  std::size_t ranks_;
  std::unique_ptr<Collectives> collectives_;
  RoundTripProbe probe_;
  SharedMemory memory_;
  Verifier verifier_;
  RoundLog log_;
  RoundLog inner_log_;
  std::vector<std::unique_ptr<Method>> methods_;
  std::vector<double> iteration_ns_;  ///< Estimate per method, the same on every rank
  std::vector<RankStamps> stamps_;
  std::vector<RankStamps> gathered_;
  std::int64_t last_now_ns_ = 0;
  PointResult result_;
};

}  // namespace

PointResult measure_point(Transport& transport, const Workload* workload,
                          const std::vector<MethodSpec>& specs, const MethodSettings& settings,
                          const HarnessOptions& options) {
  const PointWishes wishes{
      .max_seconds = options.max_seconds,
      .begin_ns =
          std::chrono::duration_cast<std::chrono::nanoseconds>(options.start.time_since_epoch()).count(),
      .thresholds = options.thresholds,
      .available_bytes = available_memory_bytes(),
      .refusal = options.refusal,
      .hopeless_bytes_per_second =
          options.on_device ? kHopelessBytesPerSecondOnDevice : kHopelessBytesPerSecond};
  MethodSettings here = settings;
  here.node_of = separate_nodes(transport);
  PointTerms terms = agree_on_point(transport, workload, specs, here, options.rounds, wishes);
  if (options.on_device) {
    terms.clock = StampClock::per_rank;
    terms.unprobed = "device";
  }
  return PointRun(transport, *workload, terms, here, options).run();
}

}  // namespace shunt::bench
