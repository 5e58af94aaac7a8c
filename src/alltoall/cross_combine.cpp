#include <algorithm>
#include <cstring>

#include <fmt/format.h>

#include <shunt/core/error.h>

#include "guarded.h"
#include "impl.h"
#include "row_stream.h"

// The way of results back to ranks whose memory cannot be loaded: docs/architecture.md, "Between nodes".
namespace shunt {

/// Entries of the source's group at an owner of this home, and where the owner's positions of them begin.
std::int64_t AllToAll::Impl::results_for(std::int32_t source, std::int32_t owner, std::int64_t* begin) const {
  const std::int32_t first = source / config.dp_size * config.dp_size;
  const std::byte* begins = peers[at(owner)] + plan.begin_offset;
  std::int64_t end = 0;
  std::memcpy(begin, begins + first * static_cast<std::int64_t>(sizeof(std::int64_t)), sizeof *begin);
  std::memcpy(&end, begins + (first + config.dp_size) * static_cast<std::int64_t>(sizeof(std::int64_t)),
              sizeof end);
  return end - *begin;
}

const std::byte* AllToAll::Impl::result_row(std::int32_t owner, std::int64_t index) const {
  std::int32_t row = 0;
  std::memcpy(&row, peers[at(owner)] + plan.published_offset + index * static_cast<std::int64_t>(sizeof row),
              sizeof row);
  return peers[at(owner)] + plan.output_offset + row * plan.output_row_bytes;
}

/// flat: each owner sends its own results home, as soon as it has them.
void AllToAll::Impl::return_own_results() {
  outbox.begin_half();
  for (const std::int32_t source : inbound) {
    if (config.presum) {
      return_partial_sums(source);
      continue;
    }
    begin_return(returning[at(source)], source);
    return_results(returning[at(source)], source, std::span(&world.rank, 1), true);
  }
}

/// hierarchical: the landing rank collects what the owners of this home have for its sources. Few rows go together once
/// all owners are ready, many as soon as they are there.
void AllToAll::Impl::return_home_results(Deadline until) {
  outbox.begin_half();
  for (const std::int32_t source : inbound) begin_return(returning[at(source)], source);
  const std::span<const std::int32_t> covered = crossings.covered(world.rank);
  for (std::size_t i = 0; i < covered.size(); ++i) {
    wait(plan.position_offset + covered[i] * plan.position_stride, word(0), until, covered[i], Half::combine);
    if (config.presum) continue;
    const bool last = i + 1 == covered.size();
    for (const std::int32_t source : inbound) {
      ReturnStream& back = returning[at(source)];
      if (!back.few)
        return_results(back, source, covered.subspan(i, 1), last);
      else if (last)
        return_results(back, source, covered, true);
    }
  }
  for (const std::int32_t source : inbound)
    if (config.presum) return_partial_sums(source);
}

void AllToAll::Impl::begin_return(ReturnStream& back, std::int32_t source) {
  LandingHeader header;
  std::memcpy(&header, landing_slot(world.rank, source), sizeof header);
  back = {.next_row = header.return_base,
          .rows = 0,
          .checksum = hash_bytes(kHashSeed, &epoch, sizeof epoch),
          .few = header.num_entries * plan.output_row_bytes <= kMostWhole};
}

/// `last`: nothing follows for this source.
void AllToAll::Impl::return_results(ReturnStream& back, std::int32_t source,
                                    std::span<const std::int32_t> from, bool last) {
  RowStream stream(outbox, kernels, source, plan.return_offset + back.next_row * plan.output_row_bytes);
  for (const std::int32_t owner : from) {
    std::int64_t begin = 0;
    const std::int64_t entries = results_for(source, owner, &begin);
    for (std::int64_t i = 0; i < entries; ++i) {
      const std::byte* row = result_row(owner, begin + i);
      stream.add(row, plan.output_row_bytes);
      if (config.check_messages) back.checksum = hash_bytes(back.checksum, row, plan.output_row_bytes);
    }
    back.next_row += entries;
    back.rows += entries;
  }
  if (last)
    end_return(back, source, stream);
  else
    stream.finish();
}

/// One row for each token of the message: the weighted sum of what the covered owners made of it, in k order.
void AllToAll::Impl::return_partial_sums(std::int32_t source) {
  const std::byte* slot = landing_slot(world.rank, source);
  LandingHeader header;
  std::memcpy(&header, slot, sizeof header);
  const MessageLayout layout = message_layout(plan, true, header.num_rows, header.num_entries);
  ReturnStream& back = returning[at(source)];
  begin_return(back, source);

  // The parts of each token together: counted, placed, then ordered by k.
  std::fill(part_begin.begin(), part_begin.end(), 0);
  const auto entry_at = [&](std::int64_t i) {
    Entry entry;
    std::memcpy(&entry, slot + plan.landing_entry_at + i * static_cast<std::int64_t>(sizeof entry),
                sizeof entry);
    return entry;
  };
  for (std::int64_t i = 0; i < header.num_entries; ++i) ++part_begin[at(entry_at(i).token) + 1];
  for (std::size_t row = 1; row < part_begin.size(); ++row) part_begin[row] += part_begin[row - 1];
  std::copy_n(part_begin.begin(), part_end.size(), part_end.begin());
  std::int64_t index = 0;
  for (const std::int32_t owner : crossings.covered(world.rank)) {
    std::int64_t begin = 0;
    const std::int64_t entries = results_for(source, owner, &begin);
    for (std::int64_t i = 0; i < entries; ++i, ++index) {
      Term term{};
      std::memcpy(&term, slot + layout.term_at + index * static_cast<std::int64_t>(sizeof term), sizeof term);
      const std::size_t row = at(entry_at(index).token);
      std::int64_t place = part_end[row]++;
      for (; place > part_begin[row] && parts[at(place - 1)].k > term.k; --place)
        parts[at(place)] = parts[at(place - 1)];
      parts[at(place)] = {.k = term.k, .weight = term.weight, .row = result_row(owner, begin + i)};
    }
  }

  RowStream stream(outbox, kernels, source, plan.return_offset + back.next_row * plan.output_row_bytes);
  for (std::int64_t row = 0; row < header.num_rows; ++row) {
    const std::int64_t from = part_begin[at(row)];
    const std::int64_t end = part_end[at(row)];
    for (std::int64_t i = from; i < end; ++i) {
      sum_rows[at(i - from)] = parts[at(i)].row;
      sum_weights[at(i - from)] = parts[at(i)].weight;
    }
    std::byte* const sum = stream.room(plan.output_row_bytes);
    kernels.weighted_sum({.rows = sum_rows.data(),
                          .weights = sum_weights.data(),
                          .num_rows = end - from,
                          .hidden = config.hidden,
                          .row_dtype = config.expert_dtype,
                          .out_dtype = config.expert_dtype,
                          .out = sum,
                          .accumulate = false});
    if (config.check_messages) back.checksum = hash_bytes(back.checksum, sum, plan.output_row_bytes);
  }
  back.rows = header.num_rows;
  end_return(back, source, stream);
}

void AllToAll::Impl::end_return(const ReturnStream& back, std::int32_t source, RowStream& stream) {
  const std::int64_t signal = plan.position_offset + world.rank * plan.position_stride;
  const std::uint64_t value = word(static_cast<std::uint32_t>(back.rows));
  bytes.crossed_results += back.rows * plan.output_row_bytes;
  if (!config.check_messages) {
    stream.finish_with_signal(signal, value);
    return;
  }
  stream.finish();
  constexpr auto kHeaderBytes = static_cast<std::int64_t>(sizeof(ReturnHeader));
  const ReturnHeader header{.checksum = back.checksum, .num_rows = static_cast<std::uint64_t>(back.rows)};
  std::byte* const staged = outbox.room(kHeaderBytes);
  std::memcpy(staged, &header, sizeof header);
  transport.put_signal(buffer, source, plan.return_header_offset + world.rank * kHeaderBytes, staged,
                       kHeaderBytes, signal, value);
  bytes.crossed_messages += kHeaderBytes;
}

void AllToAll::Impl::await_returned(const Outbound& from, Deadline until) {
  const std::uint64_t seen_word = wait(plan.position_offset + from.landing * plan.position_stride, word(0),
                                       until, from.landing, Half::combine);
  const auto rows = static_cast<std::int64_t>(seen_word & 0xffffffffU);
  if (rows != from.results) refuse_results(from.landing, from.results, rows);
  if (!config.check_messages) return;
  ReturnHeader header;
  std::memcpy(
      &header,
      buffer.local + plan.return_header_offset + from.landing * static_cast<std::int64_t>(sizeof header),
      sizeof header);
  std::uint64_t checksum = hash_bytes(kHashSeed, &epoch, sizeof epoch);
  const std::byte* row = buffer.local + plan.return_offset + from.return_base * plan.output_row_bytes;
  for (std::int64_t i = 0; i < rows; ++i, row += plan.output_row_bytes)
    checksum = hash_bytes(checksum, row, plan.output_row_bytes);
  if (header.num_rows == static_cast<std::uint64_t>(rows) && header.checksum == checksum) return;
  stage = Stage::dead;
  throw Error(
      Errc::check_failed,
      fmt::format("rank {}: combine step {}: the results from rank {} arrived damaged ({} rows, their "
                  "checksum does not fit them)",
                  world.rank, epoch, from.landing, rows));
}

/// Pointers to the rows of a token that were summed where they were made; they follow its own rows in the sum.
void AllToAll::Impl::look_up_partial_sums(std::int64_t token, std::vector<const void*>& rows) {
  const std::int32_t* owner = owners.data() + token * config.top_k;
  for (std::size_t i = 0; i < outbound.size(); ++i) {
    const bool went = std::any_of(owner, owner + config.top_k, [&](std::int32_t one) {
      return one >= 0 && outbound_of[at(one)] == static_cast<std::int32_t>(i);
    });
    rows[at(config.top_k) + i] =
        !went ? nullptr
              : buffer.local + plan.return_offset +
                    (outbound[i].return_base + partial_cursor[i]++) * plan.output_row_bytes;
  }
}

}  // namespace shunt
