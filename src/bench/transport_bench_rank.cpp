#include "transport_bench_rank.h"

#include <algorithm>
#include <map>
#include <optional>
#include <type_traits>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <shunt/bench/verify.h>
#include <shunt/core/error.h>
#include <shunt/core/random.h>
#include <shunt/core/record.h>

#include "archive.h"
#include "probe.h"
#include "transport_bench_ops.h"
#include "transport_bench_tcp.h"

namespace shunt::bench {
namespace {

constexpr std::int64_t kMaxBlockIterations = 500;
/// Most payload under way in a window: a window of 64 shrinks above 256 KiB.
constexpr std::int64_t kWindowBytes = 16 << 20;

template <class Archive>
void visit(Archive& a, TurnResult& r) {
  field(a, r.world.transport);
  field(a, r.world.ranks);
  field(a, r.world.nodes);
  field(a, r.world.pair_peer);
  field(a, r.world.pair_node);
  field(a, r.world.clock);
  field(a, r.thresholds);
  field(a, r.surveyed);
  list(a, r.cases, [&a](CaseResult& c) {
    field(a, c.op);
    field(a, c.method);
    field(a, c.bytes);
    field(a, c.messages);
    field(a, c.payload_bytes);
    field(a, c.bus_share);
    field(a, c.checked);
    field(a, c.wrong);
    field(a, c.reason);
    list(a, c.blocks, [&a](Block& b) {
      field(a, b.before_ns);
      field(a, b.after_ns);
      list(a, b.samples_us, [&a](double& us) { field(a, us); });
    });
  });
  list(a, r.notes, [&a](std::string& text) { field(a, text); });
}

/// Rank to which rank 0 puts: of another node where there is one.
std::int32_t pair_peer(const World& world) {
  for (std::int32_t rank = 1; rank < world.size; ++rank)
    if (world.node_of(rank) != world.node_of(0)) return rank;
  return world.size > 1 ? 1 : -1;
}

bool is_pair_op(const std::string& op) {
  return op.starts_with("put_") || op == "signal_latency";
}

struct Case {
  CaseResult result;
  Exercise* exercise = nullptr;
  Shape shape;
  double scale = 1;  ///< Of a sample: a half for half a round trip
  double iteration_ns = 0;
  Found found;
};

/// What each rank says at the end of a block; rank 0's counts.
struct BlockNote {
  double before_ns = -1, after_ns = -1;
  std::int64_t now_ns = 0;
  std::int64_t wall_ns = 0;
};

struct FoundNote {
  std::int64_t checked = 0, wrong = 0;
  char first[160] = {};
};

/// What ranks must have been given alike.
std::vector<OptionHash> hash_options(const TransportBenchOptions& options,
                                     const std::vector<std::string>& ops) {
  const auto hash = [](const auto& value) {
    const std::string text = fmt::format("{}", value);
    return hash_bytes(text.data(), static_cast<std::int64_t>(text.size()));
  };
  return {{"program (version and git revision)", hash(fmt::format("{} {}", version(), git_revision()))},
          {"--provider", hash(options.provider)},
          {"--min-bytes", hash(options.min_bytes)},
          {"--max-bytes", hash(options.max_bytes)},
          {"--factor", hash(options.factor)},
          {"--ops", hash(fmt::format("{}", fmt::join(ops, ",")))},
          {"--window", hash(options.window)},
          {"--warmup", hash(options.warmup)},
          {"--iterations", hash(options.iterations)},
          {"--rounds", hash(options.rounds)},
          {"--seed", hash(options.seed)},
          {"--check", hash(options.check)},
          {"--transport", hash(fmt::format("{}", fmt::join(options.transports, ",")))}};
}

class Turn {
 public:
  Turn(Transport& transport, const TurnRequest& request)
      : begin_ns_(bench_now_ns()),
        transport_(transport),
        request_(request),
        options_(request.options),
        deadline_(options_.deadline_ms),
        ranks_(static_cast<std::size_t>(transport.world().size)),
        wrapped_(options_.wrap ? options_.wrap(transport) : nullptr),
        measured_(wrapped_ ? *wrapped_ : transport),
        control_(transport.make_collectives(kMaxBlockIterations * static_cast<std::int64_t>(sizeof(Busy)),
                                            Clock::now() + deadline_)),
        probe_(transport, deadline_) {}

  TurnResult run() {
    agree();
    describe();
    set_thresholds();
    set_up_pair();
    set_up_collectives();
    for (Case& one : cases_) cold(one);
    measure_rounds();
    for (Case& one : cases_) {
      gather_found(one);
      result_.cases.push_back(std::move(one.result));
    }
    return std::move(result_);
  }

 private:
  template <class T>
  std::vector<T> gather(const T& mine) {
    static_assert(std::is_trivially_copyable_v<T>);
    std::vector<T> all(ranks_);
    control_->allgather(&mine, static_cast<std::int64_t>(sizeof(T)), all.data(), deadline_);
    return all;
  }

  [[nodiscard]] bool one_clock() const { return result_.world.clock == StampClock::common; }

  /// Ends every rank where one refuses or was given something else.
  void agree() {
    const Refusal refusal =
        compare_options(transport_, hash_options(options_, request_.ops), request_.refusal, deadline_);
    if (!refusal.text.empty()) throw Error(refusal.code, refusal.text);
  }

  void set_thresholds() {
    PlacementThresholds mine = request_.thresholds;
    bool surveyed = false;
    if (request_.survey && transport_.world().rank < 2) {
      const std::vector<double> found = probe_.survey(40, std::chrono::microseconds(4000));
      mine = refine_thresholds(mine, found);
      surveyed = !found.empty();
    }
    result_.thresholds = gather(mine)[0];
    result_.surveyed = gather(static_cast<std::uint8_t>(surveyed))[0] != 0;
  }

  [[nodiscard]] bool wanted(const std::string& op) const {
    return std::find(request_.ops.begin(), request_.ops.end(), op) != request_.ops.end();
  }

  void describe() {
    const World& world = transport_.world();
    const std::vector<std::uint64_t> domains = gather(clock_domain());
    const bool common = std::all_of(domains.begin(), domains.end(),
                                    [&](std::uint64_t domain) { return domain == domains.front(); });
    const std::int32_t peer = pair_peer(world);
    result_.world = {.transport = std::string(transport_.name()),
                     .ranks = world.size,
                     .nodes = world.num_nodes(),
                     .pair_peer = peer,
                     .pair_node = peer < 0 ? 0 : world.node_of(peer),
                     .clock = common ? StampClock::common : StampClock::per_rank};
  }

  Case& add(const std::string& op, const std::string& method, Exercise& exercise, const Shape& shape) {
    Case one;
    one.exercise = &exercise;
    one.shape = shape;
    one.result.op = op;
    one.result.method = method;
    one.result.bytes = shape.bytes;
    one.result.messages = shape.messages;
    one.result.payload_bytes = shape.bytes * shape.messages;
    cases_.push_back(std::move(one));
    return cases_.back();
  }

  [[nodiscard]] Shape pair_shape(const std::string& op, std::int64_t bytes) const {
    if (!op.ends_with("bandwidth")) return {.bytes = bytes};
    return {.bytes = bytes, .messages = std::clamp(kWindowBytes / bytes, std::int64_t{1}, options_.window)};
  }

  void add_sizes(const std::string& op, const std::string& method, Exercise& exercise, double scale) {
    for (const std::int64_t bytes : message_sizes(options_)) {
      Case& one = add(op, method, exercise, pair_shape(op, bytes));
      one.scale = scale;
      if (op == "put_bibandwidth") one.result.payload_bytes *= 2;
    }
  }

  void set_up_pair() {
    if (std::none_of(request_.ops.begin(), request_.ops.end(), is_pair_op)) return;
    std::int64_t region = 0;
    for (const std::string& op : request_.ops)
      for (const std::int64_t bytes : message_sizes(options_)) {
        const Shape shape = pair_shape(op, bytes);
        if (is_pair_op(op)) region = std::max(region, shape.bytes * shape.messages);
      }
    pair_.emplace(measured_, result_.world.pair_peer, region, deadline_);
    const std::string& name = result_.world.transport;
    for (const std::string& op : request_.ops) {
      if (!is_pair_op(op)) continue;
      exercises_.push_back(make_pair_exercise(op, *pair_));
      if (op == "signal_latency")
        add(op, name, *exercises_.back(), {}).scale = 0.5;
      else
        add_sizes(op, name, *exercises_.back(), op == "put_latency" ? 0.5 : 1);
    }
    set_up_floors();
  }

  /// The same bytes without the transport: by one process where the pair shares memory, else by a socket.
  void set_up_floors() {
    const std::vector<std::uint8_t> shares = gather(static_cast<std::uint8_t>(pair_->load_store()));
    const bool network = shares[0] == 0;
    if (!wanted("put_latency") && !wanted("put_bandwidth")) return;
    if (network) {
      std::string address = request_.master_addr;
      if (address.empty() && one_clock()) address = "127.0.0.1";
      if (address.empty()) {
        result_.notes.emplace_back(
            "tcp_raw: not measured: ranks are on several machines and MASTER_ADDR does not say where they "
            "meet");
        return;
      }
      tcp_.emplace(*pair_, *control_, address, deadline_);
      if (!tcp_->usable()) {
        result_.notes.push_back("tcp_raw: not measured: " + tcp_->reason());
        return;
      }
    }
    for (const char* op : {"put_latency", "put_bandwidth"}) {
      if (!wanted(op)) continue;
      exercises_.push_back(network ? make_tcp_exercise(op, *pair_, *tcp_) : make_memcpy_exercise(*pair_));
      const bool half = network && std::string(op) == "put_latency";
      add_sizes(op, network ? "tcp_raw" : "memcpy", *exercises_.back(), half ? 0.5 : 1);
    }
  }

  void set_up_collectives() {
    const std::int32_t ranks = transport_.world().size;
    std::vector<Shape> shapes;
    for (const std::int64_t bytes : message_sizes(options_))
      if (bytes >= ranks) shapes.push_back({.bytes = bytes / ranks * ranks, .piece = bytes / ranks});
    if (shapes.empty()) shapes.push_back({.bytes = ranks, .piece = 1});
    for (const std::string& op : request_.ops) {
      if (is_pair_op(op)) continue;
      // A half more than the size: pieces of alltoallv are uneven.
      if (!measured_collectives_)
        measured_collectives_ = measured_.make_collectives(shapes.back().bytes / 2 * 3 + ranks, deadline());
      exercises_.push_back(make_collective_exercise(op, measured_, *control_, *measured_collectives_,
                                                    shapes.back(), deadline_));
      const std::string& name = result_.world.transport;
      if (op == "barrier") {
        add(op, name, *exercises_.back(), {}).result.bus_share = 0;
        continue;
      }
      for (const Shape& shape : shapes) {
        Case& one = add(op, name, *exercises_.back(), shape);
        one.result.bus_share = static_cast<double>(ranks - 1) / ranks;
        if (op == "alltoallv") count_uneven(one);
      }
    }
  }

  /// The mean of what ranks send, and the share of it that leaves them.
  void count_uneven(Case& one) const {
    std::int64_t total = 0, kept = 0;
    const std::int32_t ranks = transport_.world().size;
    for (std::int32_t from = 0; from < ranks; ++from)
      for (std::int32_t to = 0; to < ranks; ++to) {
        const std::int64_t piece = uneven_piece(one.shape.piece, from, to);
        total += piece;
        if (from == to) kept += piece;
      }
    one.result.bytes = one.result.payload_bytes = total / ranks;
    one.result.bus_share = static_cast<double>(total - kept) / static_cast<double>(total);
  }

  [[nodiscard]] Deadline deadline() const { return Clock::now() + deadline_; }

  /// `count` iterations; every rank counts them, also where it takes no part.
  void iterate(Case& one, std::int64_t count, Busy* busy) {
    Exercise& exercise = *one.exercise;
    if (exercise.takes_part()) {
      for (std::int64_t n = 0; n < count; ++n) {
        const std::uint64_t sequence = sequence_ + static_cast<std::uint64_t>(n) + 1;
        if (options_.check || n == 0) exercise.fill(one.shape, sequence);
        exercise.meet(sequence);
        const Busy now = exercise.run(one.shape, sequence);
        exercise.settle();
        if (busy != nullptr) busy[n] = now;
        if (options_.check) exercise.check(one.shape, sequence, one.found);
      }
    }
    sequence_ += static_cast<std::uint64_t>(count);
  }

  void cold(Case& one) {
    control_->barrier(deadline_);
    const std::int64_t start = bench_now_ns();
    iterate(one, 1, nullptr);
    one.iteration_ns = static_cast<double>(gather(bench_now_ns() - start)[0]);
  }

  void measure_block(Case& one) {
    const double fits = options_.block_ms * 1e6 / std::max(one.iteration_ns, 1.0);
    const std::int64_t iterations =
        options_.iterations > 0
            ? std::min(options_.iterations, kMaxBlockIterations)
            : static_cast<std::int64_t>(std::clamp(fits, 1.0, static_cast<double>(kMaxBlockIterations)));
    const std::int64_t warmup = fits < 1 ? std::min<std::int64_t>(options_.warmup, 1) : options_.warmup;
    std::vector<Busy> mine(static_cast<std::size_t>(iterations));
    control_->barrier(deadline_);
    BlockNote note;
    note.before_ns = probe_.measure();
    iterate(one, warmup, nullptr);
    const std::int64_t start = bench_now_ns();
    iterate(one, iterations, mine.data());
    note.now_ns = bench_now_ns();
    note.wall_ns = note.now_ns - start;
    control_->barrier(deadline_);
    note.after_ns = probe_.measure();
    const BlockNote counts = gather(note)[0];
    std::vector<Busy> all(mine.size() * ranks_);
    control_->allgather(mine.data(), static_cast<std::int64_t>(mine.size() * sizeof(Busy)), all.data(),
                        deadline_);
    Block block{.before_ns = counts.before_ns, .after_ns = counts.after_ns, .samples_us = {}};
    for (std::size_t n = 0; n < mine.size(); ++n)
      block.samples_us.push_back(sample_ns(all, n, mine.size()) * one.scale / 1e3);
    one.result.blocks.push_back(std::move(block));
    one.iteration_ns = static_cast<double>(counts.wall_ns) / static_cast<double>(iterations);
    last_now_ns_ = counts.now_ns;
  }

  /// Of iteration n: from the first begin to the last end where the ranks' clocks are one, else the time of
  /// the slowest rank.
  [[nodiscard]] double sample_ns(const std::vector<Busy>& all, std::size_t n, std::size_t count) const {
    std::int64_t first = INT64_MAX, last = 0, longest = 0;
    for (std::size_t r = 0; r < ranks_; ++r) {
      const Busy& busy = all[r * count + n];
      if (busy.end_ns == 0) continue;
      first = std::min(first, busy.begin_ns);
      last = std::max(last, busy.end_ns);
      longest = std::max(longest, busy.end_ns - busy.begin_ns);
    }
    return static_cast<double>(one_clock() ? last - first : longest);
  }

  [[nodiscard]] bool complete() const {
    std::map<std::string, std::size_t> enough;
    for (const Case& one : cases_) {
      std::map<std::string, std::int64_t> rounds;
      for (const Block& block : one.result.blocks)
        ++rounds[turn_label(block, result_.world.ranks, result_.thresholds)];
      for (const auto& in_class : rounds)
        if (!in_class.first.empty() && in_class.second >= request_.rounds) ++enough[in_class.first];
    }
    return std::any_of(enough.begin(), enough.end(),
                       [&](const auto& in_class) { return in_class.second == cases_.size(); });
  }

  void measure_rounds() {
    const std::int64_t begin = gather(begin_ns_)[0];
    const double seconds = gather(request_.seconds)[0];
    const auto late = [&] { return static_cast<double>(last_now_ns_ - begin) / 1e9 > seconds; };
    std::vector<std::size_t> order(cases_.size());
    for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
    for (std::uint64_t round = 0; !order.empty(); ++round) {
      const std::uint64_t stream = (static_cast<std::uint64_t>(request_.turn) << 32) + round;
      Random random(options_.seed, stream);
      for (std::size_t n = order.size(); n > 1; --n) std::swap(order[n - 1], order[random.below(n)]);
      for (const std::size_t i : order) {
        measure_block(cases_[i]);
        // The first round is always whole, so that everything has a number.
        if (round > 0 && late()) return;
      }
      if (complete() || late()) return;
    }
  }

  void gather_found(Case& one) {
    FoundNote note{.checked = one.found.checked, .wrong = one.found.wrong};
    one.found.first.copy(note.first, sizeof note.first - 1);
    for (const FoundNote& found : gather(note)) {
      one.result.checked += found.checked;
      one.result.wrong += found.wrong;
      if (one.result.reason.empty()) one.result.reason = found.first;
    }
  }

  std::int64_t begin_ns_;
  Transport& transport_;
  const TurnRequest& request_;
  const TransportBenchOptions& options_;
  std::chrono::milliseconds deadline_;
  std::size_t ranks_;
  std::unique_ptr<Transport> wrapped_;
  Transport& measured_;
  std::unique_ptr<Collectives> control_;
  RoundTripProbe probe_;
  std::optional<Pair> pair_;
  std::optional<TcpLink> tcp_;
  std::unique_ptr<Collectives> measured_collectives_;
  std::vector<std::unique_ptr<Exercise>> exercises_;
  std::vector<Case> cases_;
  std::uint64_t sequence_ = 0;
  std::int64_t last_now_ns_ = 0;
  TurnResult result_;
};

}  // namespace

std::string encode_turn(const TurnResult& result) {
  TurnResult copy = result;
  Writer writer;
  visit(writer, copy);
  return writer.bytes;
}

TurnResult decode_turn(std::string_view bytes) {
  TurnResult result;
  Reader reader{bytes};
  visit(reader, result);
  return result;
}

std::string turn_label(const Block& block, std::int32_t ranks, const PlacementThresholds& thresholds) {
  return block_label(block.before_ns, block.after_ns, thresholds, ranks > 1 ? "network" : "single");
}

TurnResult measure_turn(Transport& transport, const TurnRequest& request) {
  if (transport.capabilities().device_memory) {
    throw Error(
        Errc::unavailable,
        fmt::format("bench transport fills and compares payloads with the CPU, but memory of transport {} "
                    "lies on a GPU; shunt bench alltoall --device cuda measures it",
                    transport.name()));
  }
  return Turn(transport, request).run();
}

}  // namespace shunt::bench
