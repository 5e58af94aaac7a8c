#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <vector>

#include <shunt/core/error.h>

#include "impl.h"

// Which way of moving rows is fastest depends on the caches between the cores, on the number of ranks and on
// the size, and no property that a program can read tells it: on one machine plain stores into lines that a
// peer has read run at full speed, on another they are ten times slower than the peer's own copy. So the
// constructor tries the ways at a few sizes in the object's own buffers.
namespace shunt {
namespace {

enum class Way : std::uint8_t { pull, push, push_streaming };
constexpr std::array kWays = {Way::pull, Way::push, Way::push_streaming};
constexpr int kTries = 5;  // The first one meets cold caches and does not count.

/// Bytes in flight on the machine. Smaller steps are over before a push would have been asked for.
constexpr std::array<std::int64_t, 6> kSizes = {2 << 20, 5 << 20, 12 << 20, 28 << 20, 64 << 20, 128 << 20};
/// A push needs one more exchange than a pull, and what is within the noise should stay with the simpler way.
constexpr double kPushMustGain = 1.05;

struct Span {
  std::int64_t begin = 0;
  std::int64_t end = 0;
};

std::int64_t clock_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now().time_since_epoch()).count();
}

}  // namespace

void AllToAll::Impl::choose_moves() {
  if (crossings.any()) {
    // Beside what crosses, the copies inside a node are short; and not every pair could be measured.
    choice = {.push_from = std::numeric_limits<std::int64_t>::max(),
              .stream_from = std::numeric_limits<std::int64_t>::max()};
    return;
  }
  if (config.push_from_bytes < 0 || config.stream_from_bytes < 0) measure_moves();
  if (config.push_from_bytes >= 0) choice.push_from = config.push_from_bytes;
  if (config.stream_from_bytes >= 0) choice.stream_from = config.stream_from_bytes;
  // Streaming was measured for pushed rows only.
  choice.stream_from = std::max(choice.stream_from, choice.push_from);
}

void AllToAll::Impl::measure_moves() {
  constexpr std::int64_t kNever = std::numeric_limits<std::int64_t>::max();
  choice = {.push_from = kNever, .stream_from = kNever};
  const auto ranks = static_cast<std::int64_t>(world.size);
  const std::int64_t room = plan.max_arriving * plan.row_bytes;
  const std::int64_t window = config.max_tokens * plan.row_bytes;
  std::vector<Span> spans(static_cast<std::size_t>(ranks));

  // Piece p of a rank's rows comes from rank p; rows and tokens hold zeros, which any way may copy about.
  const auto move = [&](Way way, std::int64_t piece) {
    const auto copy = way == Way::push_streaming ? kernels.copy_streaming : kernels.copy;
    for (std::int32_t step = 0; step < world.size; ++step) {
      const std::int32_t peer = (world.rank + step) % world.size;
      const bool mine = way == Way::pull || peer == world.rank;
      const std::int32_t source = mine ? peer : world.rank;
      const std::int32_t owner = mine ? world.rank : peer;
      const std::byte* tokens = peers[static_cast<std::size_t>(source)] + plan.token_offset;
      std::byte* rows = peers[static_cast<std::size_t>(owner)] + plan.row_offset + source * piece;
      for (std::int64_t at = 0; at + plan.row_bytes <= piece; at += plan.row_bytes)
        copy(rows + at, tokens + at % window, plan.row_bytes);
    }
    if (way == Way::push_streaming) store_fence();
  };
  // As experts: reads every row and writes a result of its size.
  const auto read_rows = [&](std::int64_t total) {
    const std::byte* row = buffer.local + plan.row_offset;
    std::byte* result = buffer.local + plan.output_offset;
    const std::int64_t both = std::max(plan.row_bytes, plan.output_row_bytes);
    for (std::int64_t done = 0; done < total; done += plan.row_bytes) {
      for (std::int64_t at = 0; at < both;) {
        const std::int64_t from = at % plan.row_bytes;
        const std::int64_t to = at % plan.output_row_bytes;
        const std::int64_t part = std::min({both - at, plan.row_bytes - from, plan.output_row_bytes - to});
        kernels.copy(result + to, row + from, part);
        at += part;
      }
      row += plan.row_bytes;
      result += plan.output_row_bytes;
    }
  };
  // The slowest rank's end less the first one's begin, the same number on every rank.
  const auto time_ns = [&](Way way, std::int64_t piece) {
    std::int64_t best = kNever;
    for (int attempt = 0; attempt < kTries; ++attempt) {
      collectives->barrier(kSetupDeadline);
      Span mine{.begin = clock_ns()};
      move(way, piece);
      collectives->barrier(kSetupDeadline);
      // What experts do next belongs to the price: rows that were streamed to memory must come back from
      // there.
      read_rows(piece * ranks);
      mine.end = clock_ns();
      collectives->allgather(&mine, sizeof(mine), spans.data(), kSetupDeadline);
      Span all = spans[0];
      for (const Span& span : spans) all = {std::min(all.begin, span.begin), std::max(all.end, span.end)};
      if (attempt > 0) best = std::min(best, all.end - all.begin);
    }
    return best;
  };

  std::int64_t previous = 0;
  for (const std::int64_t size : kSizes) {
    const std::int64_t piece = size / (ranks * ranks) / plan.row_bytes * plan.row_bytes;
    if (piece == 0 || piece * ranks > room) continue;
    std::array<std::int64_t, kWays.size()> ns{};
    std::transform(kWays.begin(), kWays.end(), ns.begin(), [&](Way way) { return time_ns(way, piece); });
    const std::int64_t fastest_push = std::min(ns[1], ns[2]);
    // Between two sizes with different verdicts the threshold lies in the geometric middle; a larger size
    // that disagrees takes it back.
    const std::int64_t from =
        previous == 0
            ? size
            : static_cast<std::int64_t>(std::sqrt(static_cast<double>(previous) * static_cast<double>(size)));
    if (static_cast<double>(fastest_push) * kPushMustGain >= static_cast<double>(ns[0]))
      choice.push_from = kNever;
    else if (choice.push_from == kNever)
      choice.push_from = from;
    if (ns[2] >= std::min(ns[0], ns[1]))
      choice.stream_from = kNever;
    else if (choice.stream_from == kNever)
      choice.stream_from = from;
    previous = size;
  }
}

}  // namespace shunt
