#include <algorithm>
#include <cstring>

#include <fmt/format.h>

#include <shunt/core/error.h>
#include <shunt/pack/prefetch.h>

#include "guarded.h"
#include "impl.h"

namespace shunt {
namespace {

Entry read_entry(const std::byte* entries, std::int64_t index) {
  Entry entry;
  std::memcpy(&entry, entries + index * static_cast<std::int64_t>(sizeof(Entry)), sizeof(Entry));
  return entry;
}

}  // namespace

/// What moves on the machine if every pair moves as much as this one.
std::int64_t AllToAll::Impl::in_flight(std::int64_t entries) const noexcept {
  return entries * plan.row_bytes * world.size * world.size;
}

/// Both ends of a pair decide alike, from the number of entries that both know.
bool AllToAll::Impl::pushes(std::int64_t entries, std::int32_t source, std::int32_t owner) const noexcept {
  if (source == owner || entries == 0 || config.delivery == Delivery::view ||
      crossings.crosses(source, owner))
    return false;
  if (config.movement != Movement::automatic) return config.movement != Movement::pull;
  return in_flight(entries) >= choice.push_from;
}

void AllToAll::Impl::await_announcements(Deadline until) {
  land_messages(until);
  // Neighbours first: what a landing rank passes on may take longer than the rank itself.
  for (const bool far : {false, true}) {
    for (std::int32_t step = 0; step < world.size; ++step) {
      const std::int32_t source = (world.rank + step) % world.size;
      if (!lives(source) || crossings.crosses(source, world.rank) != far) continue;
      const bool landed = far && crossings.landing(source, world.rank) == world.rank;
      if (!landed) {
        const std::uint64_t seen_word =
            wait(plan.announce_offset + source * plan.announce_stride, word(0), far ? relayed(until) : until,
                 far ? crossings.landing(source, world.rank) : source, Half::dispatch);
        arrived[at(source)] = static_cast<std::int32_t>(seen_word & 0xffffffffU);
      }
      find_arrival(source);
    }
  }
}

void AllToAll::Impl::end_void_step(const Error& error) {
  if (membership != nullptr) {
    // All survivors leave this step in the same way, and with the exchange nobody reads its announcements any more.
    commit_step();
    stage = Stage::idle;
    throw error;
  }
  for (std::int32_t step = 1; step <= world.size; ++step) {
    const std::int32_t peer = (world.rank + step) % world.size;
    if (!lives(peer)) continue;
    transport.signal(buffer, peer, plan.position_offset + world.rank * plan.position_stride, word(0));
  }
  void_step = true;
  stage = Stage::idle;
  throw error;
}

/// Every rank sees the whole token matrix, so all find the same overflow without another exchange.
void AllToAll::Impl::check_overflow() {
  if (!plan.bounded) return;
  std::int32_t worst = 0;
  std::int64_t most = -1;
  for (std::int32_t rank = 0; rank < world.size; ++rank) {
    std::int64_t total = 0;
    for (std::int32_t source = 0; source < world.size; ++source) {
      if (!lives(source)) continue;
      std::int32_t count = 0;
      std::memcpy(&count, arrivals[at(source)].counts + rank * 4, sizeof(count));
      total += count;
    }
    if (total > most) {
      most = total;
      worst = rank;
    }
  }
  if (most <= plan.max_arriving) return;
  end_void_step(Error(
      Errc::overflow,
      fmt::format("rank {}: dispatch step {}: {} rows would arrive at rank {}, but max_recv_rows is {}; "
                  "the step is void on every rank",
                  world.rank, epoch, most, worst, plan.max_arriving)));
}

void AllToAll::Impl::check_replica_hashes() {
  if (!config.check_replicas) return;
  for (std::int32_t source = 0; source < world.size; ++source) {
    std::int32_t first = source / config.dp_size * config.dp_size;
    while (!lives(first) && first < source) ++first;
    if (!lives(source)) continue;
    if (arrivals[at(source)].hash != arrivals[at(first)].hash)
      end_void_step(
          Error(Errc::invalid_argument,
                fmt::format("rank {}: dispatch step {}: ranks {} and {} of one group (dp_size {}) brought "
                            "different tokens or expert ids; the step is void on every rank",
                            world.rank, epoch, first, source, config.dp_size)));
  }
}

/// Counts, starts and the row of every entry. Walking sources in rank order, and each source's entries as
/// announced (by token), leaves the rows of an expert sorted by (group, token).
void AllToAll::Impl::place_rows() {
  std::fill(counts.begin(), counts.end(), 0);
  if (config.counts_by_group) std::fill(counts_by_group.begin(), counts_by_group.end(), 0);
  for (std::int32_t source = 0; source < world.size; ++source) {
    const std::byte* entries = arrivals[at(source)].entries;
    const std::int32_t from_group = source / config.dp_size;
    for (std::int64_t i = 0; i < arrived[at(source)]; ++i) {
      const std::int64_t expert = read_entry(entries, i).local_expert;
      ++counts[at(expert)];
      if (config.counts_by_group) ++counts_by_group[at(expert * num_groups + from_group)];
    }
  }
  slots.starts(counts.data(), local_experts, starts.data());
  std::copy_n(starts.begin(), local_experts, next_row.begin());
  std::int64_t next = 0;
  for (std::int32_t source = 0; source < world.size; ++source) {
    position_begin[at(source)] = next;
    const std::byte* entries = arrivals[at(source)].entries;
    for (std::int64_t i = 0; i < arrived[at(source)]; ++i)
      positions[at(next++)] = static_cast<std::int32_t>(next_row[read_entry(entries, i).local_expert]++);
  }
  position_begin[at(world.size)] = next;
}

void AllToAll::Impl::pull_from(std::int32_t source, bool streaming) {
  const std::byte* entries = arrivals[at(source)].entries;
  const std::byte* tokens = arrivals[at(source)].tokens;
  const std::byte* scales = arrivals[at(source)].scales;
  std::byte* const rows = buffer.local + plan.row_offset;
  std::byte* const row_scales = buffer.local + plan.row_scale_offset;
  const std::int32_t* position = positions.data() + position_begin[at(source)];
  const auto copy = streaming ? kernels.copy_streaming : kernels.copy;
  for (std::int64_t i = 0; i < arrived[at(source)]; ++i, ++position) {
    const std::int64_t token = read_entry(entries, i).token;
    if (i + 1 < arrived[at(source)] && !streaming) {
      prefetch_to_write(rows + position[1] * plan.row_bytes);
      const std::int64_t next = read_entry(entries, i + 1).token;
      if (next != token) prefetch_to_read(tokens + next * plan.row_bytes);
    }
    copy(rows + *position * plan.row_bytes, tokens + token * plan.row_bytes, plan.row_bytes);
    if (plan.row_scale_bytes != 0)
      kernels.copy(row_scales + *position * plan.row_scale_bytes, scales + token * plan.row_scale_bytes,
                   plan.row_scale_bytes);
  }
}

/// Positions of all entries of the receiver's group, in the order in which the group's tokens name them.
void AllToAll::Impl::write_positions(std::int32_t receiver) const {
  const std::int32_t first = receiver / config.dp_size * config.dp_size;
  const std::int64_t begin = position_begin[at(first)];
  const std::int64_t end = position_begin[at(first + config.dp_size)];
  if (begin == end) return;
  std::memcpy(position_slot(receiver, world.rank) + sizeof(std::uint64_t), positions.data() + begin,
              at(end - begin) * sizeof(std::int32_t));
}

void AllToAll::Impl::request_push(std::int32_t source) {
  write_positions(source);
  transport.signal(buffer, source, plan.push_request_offset + world.rank * kSignalStride, word(0));
}

/// Source side of a push: waits for the owner's positions and writes the rows to their place.
void AllToAll::Impl::push_to(std::int32_t owner, Deadline until) {
  wait(plan.push_request_offset + owner * kSignalStride, word(0), until, owner, Half::dispatch);
  const std::byte* position =
      position_slot(world.rank, owner) + sizeof(std::uint64_t) + sent_before[at(owner)] * 4;
  const std::byte* tokens = buffer.local + plan.token_offset;
  const std::byte* scales = buffer.local + plan.token_scale_offset;
  std::byte* const rows = peers[at(owner)] + plan.row_offset;
  std::byte* const row_scales = peers[at(owner)] + plan.row_scale_offset;
  const bool streaming = config.movement == Movement::automatic
                             ? in_flight(sent[at(owner)]) >= choice.stream_from
                             : config.movement == Movement::push_streaming;
  const auto copy = streaming ? kernels.copy_streaming : kernels.copy;
  const TokenShare share = token_share(num_tokens, members, member);
  for (std::int64_t i = share.begin * config.top_k; i < share.end * config.top_k; ++i) {
    if (owners[at(i)] != owner) continue;
    std::int32_t row = 0;
    std::memcpy(&row, position, sizeof(row));
    position += sizeof(row);
    const std::int64_t token = i / config.top_k;
    copy(rows + row * plan.row_bytes, tokens + token * plan.row_bytes, plan.row_bytes);
    if (plan.row_scale_bytes != 0)
      kernels.copy(row_scales + row * plan.row_scale_bytes, scales + token * plan.row_scale_bytes,
                   plan.row_scale_bytes);
  }
  if (streaming) store_fence();
  transport.signal(buffer, owner, plan.push_done_offset + world.rank * kSignalStride, word(0));
}

/// Requests first, then the own pulls while the sources find them, then the pushes asked of this rank.
void AllToAll::Impl::move_rows(Deadline until) {
  const std::int64_t arriving = position_begin[at(world.size)];
  for (std::int32_t source = 0; source < world.size; ++source)
    if (pushes(arrived[at(source)], source, world.rank)) request_push(source);
  // Where the peers' rows are streamed in, plain stores for the own ones would evict what is still cached.
  const bool streaming = config.movement == Movement::automatic
                             ? arriving * plan.row_bytes * world.size >= choice.stream_from
                             : config.movement == Movement::push_streaming;
  for (std::int32_t step = 0; step < world.size; ++step) {
    const std::int32_t source = (world.rank + step) % world.size;
    if (!pushes(arrived[at(source)], source, world.rank)) pull_from(source, streaming);
  }
  for (std::int32_t step = 1; step < world.size; ++step) {
    const std::int32_t owner = (world.rank + step) % world.size;
    if (pushes(sent[at(owner)], world.rank, owner)) push_to(owner, until);
  }
  for (std::int32_t step = 1; step < world.size; ++step) {
    const std::int32_t source = (world.rank + step) % world.size;
    if (pushes(arrived[at(source)], source, world.rank))
      wait(plan.push_done_offset + source * kSignalStride, word(0), until, source, Half::dispatch);
  }
  if (streaming) store_fence();
  bytes.moved_rows += arriving * (plan.row_bytes + plan.row_scale_bytes);
}

/// View: the addresses instead of the rows. Padding is null; a padded layout clears only what the step before
/// left.
void AllToAll::Impl::point_rows() {
  for (std::int64_t expert = 0; expert < local_experts; ++expert) {
    const std::int64_t begin = starts[at(expert)] + counts[at(expert)];
    const std::int64_t end = config.layout == RowLayout::padded
                                 ? starts[at(expert)] + std::max(old_counts[at(expert)], counts[at(expert)])
                                 : starts[at(expert + 1)];
    std::fill(row_pointers.begin() + begin, row_pointers.begin() + end, nullptr);
    if (!scale_pointers.empty())
      std::fill(scale_pointers.begin() + begin, scale_pointers.begin() + end, nullptr);
  }
  old_counts = counts;
  const std::int32_t* position = positions.data();
  for (std::int32_t source = 0; source < world.size; ++source) {
    const std::byte* entries = arrivals[at(source)].entries;
    const std::byte* tokens = arrivals[at(source)].tokens;
    const std::byte* scales = arrivals[at(source)].scales;
    for (std::int64_t i = 0; i < arrived[at(source)]; ++i, ++position) {
      const std::int64_t token = read_entry(entries, i).token;
      row_pointers[at(*position)] = tokens + token * plan.row_bytes;
      if (!scale_pointers.empty()) scale_pointers[at(*position)] = scales + token * plan.row_scale_bytes;
    }
  }
}

void AllToAll::Impl::fill_padding() {
  if (config.padding == PaddingRows::untouched || config.delivery == Delivery::view) return;
  const int value = config.padding == PaddingRows::zero ? 0 : 0xff;
  for (std::int64_t expert = 0; expert < local_experts; ++expert) {
    const std::int64_t begin = starts[at(expert)] + counts[at(expert)];
    const std::int64_t num = starts[at(expert + 1)] - begin;
    if (num == 0) continue;
    std::memset(buffer.local + plan.row_offset + begin * plan.row_bytes, value, at(num * plan.row_bytes));
    if (plan.row_scale_bytes != 0)
      std::memset(buffer.local + plan.row_scale_offset + begin * plan.row_scale_bytes, value,
                  at(num * plan.row_scale_bytes));
  }
}

Received AllToAll::Impl::dispatch_recv() {
  guarded([this] {
    const Deadline until = deadline();
    const std::int64_t begin = now_ns();
    await_announcements(until);
    const std::int64_t announced = now_ns();
    check_replica_hashes();
    check_overflow();
    place_rows();
    const std::int64_t placed = now_ns();
    if (config.delivery == Delivery::view)
      point_rows();
    else
      move_rows(until);
    fill_padding();
    times.dispatch_wait_ns = announced - begin;
    times.place_ns = placed - announced;
    times.move_ns = now_ns() - placed;
  });
  stage = Stage::dispatched;

  Received received;
  received.starts = starts;
  received.counts = counts;
  received.num_rows = position_begin[at(world.size)];
  const std::int64_t width = starts[at(local_experts)];
  if (config.counts_by_group) received.counts_by_group = {counts_by_group.data(), local_experts, num_groups};
  if (config.delivery == Delivery::view) {
    received.row_pointers = {row_pointers.data(), at(width)};
    if (!scale_pointers.empty()) received.scale_pointers = {scale_pointers.data(), at(width)};
  } else {
    received.rows = {buffer.local + plan.row_offset, width, config.hidden, config.payload};
    if (plan.row_scale_bytes != 0) received.scales = buffer.local + plan.row_scale_offset;
  }
  return received;
}

void AllToAll::Impl::copy_out(Received& received, MutableRows rows, void* scales) const {
  const auto refuse = [this](const std::string& what) {
    throw Error(Errc::invalid_argument, fmt::format("rank {}: dispatch_recv: {}", world.rank, what));
  };
  const std::int64_t width = received.rows.rows;
  if (width > 0) {
    if (rows.data == nullptr || rows.rows < width || rows.hidden != config.hidden)
      refuse(fmt::format("the destination is [{}, {}]; at least [{}, {}] are needed",
                         rows.data == nullptr ? 0 : rows.rows, rows.hidden, width, config.hidden));
    if (rows.dtype != config.payload)
      refuse(fmt::format("the destination is {}; the payload is {}", dtype_name(rows.dtype),
                         dtype_name(config.payload)));
    if (rows.row_stride_bytes < rows.row_bytes())
      refuse(fmt::format("destination rows are {} bytes apart but {} bytes long", rows.row_stride_bytes,
                         rows.row_bytes()));
    if (plan.row_scale_bytes != 0 && scales == nullptr) refuse("rows have scales, but scales is null");
  }
  const auto* from_scales = static_cast<const std::byte*>(received.scales);
  auto* to_scales = static_cast<std::byte*>(scales);
  for (std::int64_t expert = 0; expert < local_experts; ++expert) {
    const std::int64_t end = config.padding == PaddingRows::untouched
                                 ? starts[at(expert)] + counts[at(expert)]
                                 : starts[at(expert + 1)];
    for (std::int64_t row = starts[at(expert)]; row < end; ++row) {
      kernels.copy(rows.row(row), received.rows.row(row), plan.row_bytes);
      if (plan.row_scale_bytes != 0)
        kernels.copy(to_scales + row * plan.row_scale_bytes, from_scales + row * plan.row_scale_bytes,
                     plan.row_scale_bytes);
    }
  }
  received.rows = Rows(rows.data, width, config.hidden, config.payload, rows.row_stride_bytes);
  if (plan.row_scale_bytes != 0) received.scales = scales;
}

}  // namespace shunt
