#include <algorithm>
#include <cstring>
#include <utility>

#include <fmt/format.h>

#include <shunt/core/error.h>
#include <shunt/pack/prefetch.h>

#include "guarded.h"
#include "impl.h"

namespace shunt {
namespace {

/// Bytes of each row to ask for: K rows at once, few lines of each.
constexpr std::int64_t kAhead = 256;

}  // namespace

void AllToAll::Impl::combine_send(Rows results) {
  expect_stage(Stage::dispatched, "combine_send");
  const std::int64_t width = starts[at(local_experts)];
  std::byte* const outputs = buffer.local + plan.output_offset;
  const bool in_place = results.data == outputs && results.row_stride_bytes == plan.output_row_bytes;
  const auto refuse = [this](const std::string& what) {
    throw Error(Errc::invalid_argument, fmt::format("rank {}: combine_send: {}", world.rank, what));
  };
  if (width > 0) {
    if (results.data == nullptr) refuse("results.data is null");
    if (results.rows < width || results.hidden != config.hidden)
      refuse(fmt::format("results are [{}, {}]; at least [{}, {}] are needed", results.rows, results.hidden,
                         width, config.hidden));
    if (results.dtype != config.expert_dtype)
      refuse(fmt::format("results are {}; expert_dtype is {}", dtype_name(results.dtype),
                         dtype_name(config.expert_dtype)));
    if (results.row_stride_bytes < results.row_bytes())
      refuse(fmt::format("result rows are {} bytes apart but {} bytes long", results.row_stride_bytes,
                         results.row_bytes()));
  }
  if (!in_place) {
    for (std::int64_t expert = 0; expert < local_experts; ++expert)
      for (std::int64_t i = 0; i < counts[at(expert)]; ++i) {
        const std::int64_t row = starts[at(expert)] + i;
        kernels.copy(outputs + row * plan.output_row_bytes, results.row(row), plan.output_row_bytes);
      }
    bytes.staged_outputs += position_begin[at(world.size)] * plan.output_row_bytes;
  }
  if (crossings.any()) {
    std::memcpy(buffer.local + plan.begin_offset, position_begin.data(),
                position_begin.size() * sizeof(position_begin[0]));
    // What goes far first.
    if (!crossings.hierarchical()) guarded([this] { return_own_results(); });
  }
  for (std::int32_t step = 1; step <= world.size; ++step) {
    const std::int32_t peer = (world.rank + step) % world.size;
    if (!lives(peer) || crossings.crosses(world.rank, peer)) continue;
    write_positions(peer);
    const std::int32_t first = peer / config.dp_size * config.dp_size;
    const std::int64_t entries = position_begin[at(first + config.dp_size)] - position_begin[at(first)];
    transport.signal(buffer, peer, plan.position_offset + world.rank * plan.position_stride,
                     word(static_cast<std::uint32_t>(entries)));
  }
  stage = Stage::combine_sent;
}

void AllToAll::Impl::refuse_results(std::int32_t from, std::int64_t expected, std::int64_t came) {
  stage = Stage::dead;
  throw Error(
      Errc::invalid_argument,
      fmt::format(
          "rank {}: combine step {}: this rank's tokens ask rank {} for {} results, and {} came for its "
          "group (dp_size {}): the members brought different tokens",
          world.rank, epoch, from, expected, came, config.dp_size));
}

void AllToAll::Impl::combine_recv(View2<const float> weights, MutableRows out, bool accumulate) {
  const auto refuse = [this](const std::string& what) {
    throw Error(Errc::invalid_argument, fmt::format("rank {}: combine_recv: {}", world.rank, what));
  };
  if (weights.rows < num_tokens || (weights.cols != config.top_k && num_tokens > 0))
    refuse(fmt::format("weights are [{}, {}]; this step needs [{}, {}]", weights.rows, weights.cols,
                       num_tokens, config.top_k));
  if (num_tokens > 0) {
    if (out.data == nullptr || out.rows < num_tokens || out.hidden != config.hidden)
      refuse(fmt::format("out is [{}, {}]; this step needs [{}, {}]", out.data == nullptr ? 0 : out.rows,
                         out.hidden, num_tokens, config.hidden));
    if (out.dtype != config.out_dtype)
      refuse(fmt::format("out is {}; out_dtype is {}", dtype_name(out.dtype), dtype_name(config.out_dtype)));
    if (out.row_stride_bytes < out.row_bytes())
      refuse(fmt::format("out rows are {} bytes apart but {} bytes long", out.row_stride_bytes,
                         out.row_bytes()));
  }

  const std::int64_t begin = now_ns();
  guarded([this] {
    const Deadline until = deadline();
    if (crossings.hierarchical()) return_home_results(until);
    // All of them, also owners of none of these tokens: that is what lets every buffer be used again.
    for (std::int32_t step = 0; step < world.size; ++step) {
      const std::int32_t owner = (world.rank + step) % world.size;
      if (!lives(owner) || crossings.crosses(world.rank, owner)) continue;
      const std::uint64_t seen_word =
          wait(plan.position_offset + owner * plan.position_stride, word(0), until, owner, Half::combine);
      const auto entries = static_cast<std::int32_t>(seen_word & 0xffffffffU);
      if (entries != selected[at(owner)]) refuse_results(owner, selected[at(owner)], entries);
    }
    for (const Outbound& from : outbound) await_returned(from, relayed(until));
  });
  const std::int64_t ready = now_ns();

  std::fill(cursor.begin(), cursor.end(), 0);
  std::fill(partial_cursor.begin(), partial_cursor.end(), 0);
  const std::int32_t* owner = owners.data();
  // The rows of one token ahead are looked up, so that their first lines are under way when their turn comes.
  const auto look_up = [&](std::vector<const void*>& rows, std::int64_t token) {
    if (config.presum && crossings.any()) look_up_partial_sums(token, rows);
    for (std::int64_t k = 0; k < config.top_k; ++k, ++owner) {
      const bool far = *owner >= 0 && crossings.crosses(world.rank, *owner);
      if (*owner < 0 || (far && config.presum)) {
        rows[at(k)] = nullptr;
        continue;
      }
      if (far) {
        rows[at(k)] = buffer.local + plan.return_offset +
                      (return_base[at(*owner)] + cursor[at(*owner)]++) * plan.output_row_bytes;
        continue;
      }
      std::int32_t row = 0;
      const auto index = static_cast<std::size_t>(cursor[at(*owner)]++);
      std::memcpy(&row, position_slot(world.rank, *owner) + sizeof(std::uint64_t) + index * sizeof(row),
                  sizeof(row));
      rows[at(k)] = peers[at(*owner)] + plan.output_offset + row * plan.output_row_bytes;
      prefetch_to_read(rows[at(k)], kAhead);
    }
  };
  const auto weights_of = [&](std::int64_t token) {
    if (sum_weights.empty()) return weights.row(token);
    std::copy_n(weights.row(token), config.top_k, sum_weights.begin());
    std::fill(sum_weights.begin() + config.top_k, sum_weights.end(), 1.0F);
    return static_cast<const float*>(sum_weights.data());
  };
  if (membership != nullptr && accumulate) {
    const std::int64_t row_bytes = out.row_bytes();
    for (std::int64_t token = 0; token < num_tokens; ++token)
      std::memcpy(old_out.data() + token * row_bytes, out.row(token), at(row_bytes));
  }
  if (num_tokens > 0) look_up(next_sum_rows, 0);
  for (std::int64_t token = 0; token < num_tokens; ++token) {
    std::swap(sum_rows, next_sum_rows);
    if (token + 1 < num_tokens) look_up(next_sum_rows, token + 1);
    kernels.weighted_sum({.rows = sum_rows.data(),
                          .weights = weights_of(token),
                          .num_rows = static_cast<std::int64_t>(sum_rows.size()),
                          .hidden = config.hidden,
                          .row_dtype = config.expert_dtype,
                          .out_dtype = config.out_dtype,
                          .out = out.row(token),
                          .accumulate = accumulate});
  }
  if (membership != nullptr) {
    try {
      commit_step();
    } catch (const Error&) {
      // A step that will be repeated must find what it adds to.
      const std::int64_t row_bytes = out.row_bytes();
      for (std::int64_t token = 0; accumulate && token < num_tokens; ++token)
        std::memcpy(out.row(token), old_out.data() + token * row_bytes, at(row_bytes));
      throw;
    }
  }
  stage = Stage::idle;
  times.combine_wait_ns = ready - begin;
  times.reduce_ns = now_ns() - ready;
}

}  // namespace shunt
