#include <algorithm>
#include <cstring>

#include <fmt/format.h>

#include <shunt/core/error.h>

#include "guarded.h"
#include "impl.h"
#include "row_stream.h"

// The way of tokens to ranks whose memory cannot be loaded: docs/architecture.md, "Between nodes".
namespace shunt {
const std::byte* AllToAll::Impl::landing_slot(std::int32_t landing, std::int32_t source) const {
  return peers[at(landing)] + plan.landing_offset + landing_index[at(source)] * plan.landing_stride;
}

template <class Id>
void AllToAll::Impl::send_across(View2<const Id> ids, const TokenInput& input, std::uint64_t hash,
                                 TokenShare share) {
  outbox.begin_half();
  std::int64_t base = 0;
  for (Outbound& to : outbound) {
    to.return_base = base;
    to.results = 0;
    for (const std::int32_t owner : crossings.covered(to.landing)) {
      return_base[at(owner)] = base + to.results;
      to.results += selected[at(owner)];
    }
    // Where results are summed before they cross, one comes back for each token; known when they are counted.
    if (!config.presum) base += to.results;
    send_message(to, ids, input, hash, share);
    if (config.presum) {
      to.results = to.rows;
      base += to.rows;
    }
  }
}

template <class Id>
void AllToAll::Impl::send_message(Outbound& to, View2<const Id> ids, const TokenInput& input,
                                  std::uint64_t hash, TokenShare share) {
  // Which tokens go there, and how many entries each owner gets.
  const auto index = static_cast<std::int32_t>(&to - outbound.data());
  to.rows = 0;
  const std::int32_t* owner = owners.data() + share.begin * config.top_k;
  for (std::int64_t token = share.begin; token < share.end; ++token) {
    bool goes = false;
    for (std::int64_t k = 0; k < config.top_k; ++k, ++owner)
      goes = goes || (*owner >= 0 && outbound_of[at(*owner)] == index);
    row_in_message[at(token - share.begin)] = goes ? static_cast<std::int32_t>(to.rows++) : -1;
  }
  const std::span<const std::int32_t> covered = crossings.covered(to.landing);
  to.entries = 0;
  for (const std::int32_t one : covered) {
    cursor[at(one)] = static_cast<std::int32_t>(to.entries);
    to.entries += sent[at(one)];
  }

  const MessageLayout layout = message_layout(plan, config.presum, to.rows, to.entries);
  const std::int64_t row_bytes = to.rows * (plan.row_bytes + plan.row_scale_bytes);
  // Rows that travel by themselves leave first: the signal comes with the message.
  std::uint64_t of_rows = hash_bytes(kHashSeed, &epoch, sizeof epoch);
  if (!layout.whole) of_rows = send_rows(to, layout, share, of_rows);
  std::byte* const message = outbox.room(layout.bytes);
  if (layout.whole) of_rows = copy_rows(message, layout, share, of_rows);
  std::memset(message, 0, at(plan.landing_entry_at));
  LandingHeader header{.checksum = 0,
                       .hash = hash,
                       .return_base = to.return_base,
                       .num_rows = static_cast<std::uint32_t>(to.rows),
                       .num_entries = static_cast<std::uint32_t>(to.entries)};
  std::byte* next = message + sizeof header;
  for (const std::int32_t one : covered) {
    std::memcpy(next, &sent[at(one)], sizeof(std::uint32_t));
    next += sizeof(std::uint32_t);
  }
  next = message + sizeof header + 4 * crossings.max_covered();
  if (plan.bounded) std::memcpy(next, sent.data(), sent.size() * sizeof(sent[0]));
  owner = owners.data() + share.begin * config.top_k;
  for (std::int64_t token = share.begin; token < share.end; ++token) {
    const Id* row = ids.row(token);
    for (std::int64_t k = 0; k < config.top_k; ++k, ++owner) {
      if (*owner < 0 || outbound_of[at(*owner)] != index) continue;
      const std::int64_t place = cursor[at(*owner)]++;
      const Entry entry{static_cast<std::uint32_t>(row_in_message[at(token - share.begin)]),
                        static_cast<std::uint32_t>(local_of[at(row[k])])};
      std::memcpy(message + plan.landing_entry_at + place * static_cast<std::int64_t>(sizeof entry), &entry,
                  sizeof entry);
      if (!config.presum) continue;
      const Term term{static_cast<std::uint32_t>(k), input.weights[token * config.top_k + k]};
      std::memcpy(message + layout.term_at + place * static_cast<std::int64_t>(sizeof term), &term,
                  sizeof term);
    }
  }
  std::memcpy(message, &header, sizeof header);
  if (config.check_messages) {
    // Gaps between the parts are not sent for sure, so the parts are hashed one by one.
    header.checksum = message_checksum(message, layout, to.entries, of_rows);
    std::memcpy(message, &header, sizeof header);
  }
  transport.put_signal(buffer, to.landing, plan.landing_offset + to.slot * plan.landing_stride, message,
                       layout.bytes, plan.announce_offset + world.rank * plan.announce_stride,
                       word(static_cast<std::uint32_t>(sent[at(to.landing)])));
  bytes.crossed_rows += row_bytes;
  bytes.crossed_messages += layout.bytes - (layout.whole ? row_bytes : 0);
}

/// Result: the checksum with the rows and scales.
std::uint64_t AllToAll::Impl::copy_rows(std::byte* message, const MessageLayout& layout, TokenShare share,
                                        std::uint64_t checksum) {
  const auto copy = [&](std::int64_t from, std::int64_t width, std::byte* to) {
    for (std::int64_t token = share.begin; token < share.end; ++token) {
      if (row_in_message[at(token - share.begin)] < 0) continue;
      const std::byte* row = buffer.local + from + token * width;
      kernels.copy(to, row, width);
      to += width;
      if (config.check_messages) checksum = hash_bytes(checksum, row, width);
    }
  };
  copy(plan.token_offset, plan.row_bytes, message + layout.row_at);
  if (plan.row_scale_bytes > 0)
    copy(plan.token_scale_offset, plan.row_scale_bytes, message + layout.scale_at);
  return checksum;
}

/// Result: the checksum with the rows and scales.
std::uint64_t AllToAll::Impl::send_rows(const Outbound& to, const MessageLayout& layout, TokenShare share,
                                        std::uint64_t checksum) {
  const std::int64_t slot = plan.landing_offset + to.slot * plan.landing_stride;
  const auto send = [&](std::int64_t from, std::int64_t width, std::int64_t offset) {
    RowStream stream(outbox, kernels, to.landing, offset);
    for (std::int64_t token = share.begin; token < share.end; ++token) {
      if (row_in_message[at(token - share.begin)] < 0) continue;
      const std::byte* row = buffer.local + from + token * width;
      stream.add(row, width);
      if (config.check_messages) checksum = hash_bytes(checksum, row, width);
    }
    stream.finish();
  };
  send(plan.token_offset, plan.row_bytes, slot + layout.row_at);
  if (plan.row_scale_bytes > 0) send(plan.token_scale_offset, plan.row_scale_bytes, slot + layout.scale_at);
  return checksum;
}

std::uint64_t AllToAll::Impl::message_checksum(const std::byte* message, const MessageLayout& layout,
                                               std::int64_t entries, std::uint64_t checksum) const {
  checksum = hash_bytes(checksum, message + sizeof(std::uint64_t),
                        plan.landing_entry_at - static_cast<std::int64_t>(sizeof(std::uint64_t)));
  checksum = hash_bytes(checksum, message + plan.landing_entry_at,
                        entries * static_cast<std::int64_t>(sizeof(Entry)));
  if (config.presum)
    checksum =
        hash_bytes(checksum, message + layout.term_at, entries * static_cast<std::int64_t>(sizeof(Term)));
  return checksum;
}

/// Whether every number of a message is one that a source can send: counts, the word's own, and every index.
bool AllToAll::Impl::plausible(const std::byte* slot, std::int32_t announced) const {
  LandingHeader header;
  std::memcpy(&header, slot, sizeof header);
  if (header.num_rows > plan.landing_rows || header.num_entries > plan.landing_entries ||
      header.return_base < 0 || header.return_base + header.num_entries > config.max_tokens * config.top_k)
    return false;
  const std::byte* entries = slot + plan.landing_entry_at;
  const std::byte* count_at = slot + sizeof header;
  std::int64_t left = header.num_entries;
  for (const std::int32_t owner : crossings.covered(world.rank)) {
    std::uint32_t count = 0;
    std::memcpy(&count, count_at, sizeof count);
    count_at += sizeof count;
    left -= count;
    if (left < 0 || (owner == world.rank && count != static_cast<std::uint32_t>(announced))) return false;
    const auto experts = static_cast<std::uint32_t>(partition.count(owner));
    for (; count > 0; --count, entries += sizeof(Entry)) {
      Entry entry;
      std::memcpy(&entry, entries, sizeof entry);
      if (entry.token >= header.num_rows || entry.local_expert >= experts) return false;
    }
  }
  return left == 0;
}

/// Before anything in the message is used as an index.
void AllToAll::Impl::check_message(std::int32_t source, std::int32_t announced) {
  const std::byte* slot = landing_slot(world.rank, source);
  LandingHeader header;
  std::memcpy(&header, slot, sizeof header);
  const std::int64_t entries = header.num_entries;
  const bool possible = plausible(slot, announced);
  bool sound = possible;
  if (possible && config.check_messages) {
    const MessageLayout layout = message_layout(plan, config.presum, header.num_rows, entries);
    std::uint64_t checksum = hash_bytes(kHashSeed, &epoch, sizeof epoch);
    for (std::int64_t row = 0; row < header.num_rows; ++row)
      checksum = hash_bytes(checksum, slot + layout.row_at + row * plan.row_bytes, plan.row_bytes);
    for (std::int64_t row = 0; row < header.num_rows && plan.row_scale_bytes > 0; ++row)
      checksum =
          hash_bytes(checksum, slot + layout.scale_at + row * plan.row_scale_bytes, plan.row_scale_bytes);
    sound = message_checksum(slot, layout, entries, checksum) == header.checksum;
  }
  if (sound) return;
  stage = Stage::dead;
  throw Error(
      Errc::check_failed,
      fmt::format("rank {}: dispatch step {}: the message from rank {} arrived damaged ({} tokens, {} "
                  "entries{})",
                  world.rank, epoch, source, header.num_rows, header.num_entries,
                  possible ? ", its checksum does not fit its content" : ", which is impossible"));
}

/// Waits for the sources that land here and tells the owners of this home what there is for them. First of all waits of
/// a step: it depends on nothing but the sources' dispatch_send, so no two landing ranks wait for each other.
void AllToAll::Impl::land_messages(Deadline until) {
  for (const std::int32_t source : inbound) {
    const std::uint64_t seen_word =
        wait(plan.announce_offset + source * plan.announce_stride, word(0), until, source, Half::dispatch);
    arrived[at(source)] = static_cast<std::int32_t>(seen_word & 0xffffffffU);
    check_message(source, arrived[at(source)]);
    const std::byte* count = landing_slot(world.rank, source) + sizeof(LandingHeader);
    for (const std::int32_t owner : crossings.covered(world.rank)) {
      std::uint32_t entries = 0;
      std::memcpy(&entries, count, sizeof entries);
      count += sizeof entries;
      if (owner != world.rank)
        transport.signal(buffer, owner, plan.announce_offset + source * plan.announce_stride, word(entries));
    }
  }
}

/// Where the entries and rows of a source lie, once its word is here.
void AllToAll::Impl::find_arrival(std::int32_t source) {
  Arrival& arrival = arrivals[at(source)];
  if (!crossings.crosses(source, world.rank)) {
    const std::byte* slot = announce_slot(world.rank, source);
    arrival = {.entries = slot + plan.announce_header,
               .tokens = peers[at(source)] + plan.token_offset,
               .scales = peers[at(source)] + plan.token_scale_offset,
               .counts = slot + plan.announce_header - round_up(world.size * 4, 8)};
    if (config.check_replicas) std::memcpy(&arrival.hash, slot + sizeof(std::uint64_t), sizeof arrival.hash);
    return;
  }
  const std::int32_t landing = crossings.landing(source, world.rank);
  const std::byte* slot = landing_slot(landing, source);
  LandingHeader header;
  std::memcpy(&header, slot, sizeof header);
  std::int64_t before = 0;
  const std::byte* count = slot + sizeof header;
  for (const std::int32_t owner : crossings.covered(landing)) {
    if (owner == world.rank) break;
    std::uint32_t entries = 0;
    std::memcpy(&entries, count, sizeof entries);
    count += sizeof entries;
    before += entries;
  }
  const MessageLayout layout = message_layout(plan, config.presum, header.num_rows, header.num_entries);
  arrival = {.entries = slot + plan.landing_entry_at + before * static_cast<std::int64_t>(sizeof(Entry)),
             .tokens = slot + layout.row_at,
             .scales = slot + layout.scale_at,
             .counts = slot + sizeof header + 4 * crossings.max_covered(),
             .hash = header.hash};
}

template void AllToAll::Impl::send_across(View2<const std::int32_t>, const TokenInput&, std::uint64_t,
                                          TokenShare);
template void AllToAll::Impl::send_across(View2<const std::int64_t>, const TokenInput&, std::uint64_t,
                                          TokenShare);

}  // namespace shunt
