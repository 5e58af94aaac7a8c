#include <algorithm>
#include <atomic>
#include <cstring>
#include <optional>
#include <utility>

#include <fmt/format.h>

#include <shunt/core/error.h>

#include "guarded.h"
#include "impl.h"
#include "row_stream.h"

namespace shunt {
void AllToAll::Impl::check_tokens(const TokenInput& input, std::int64_t tokens, std::int64_t id_rows,
                                  std::int64_t id_cols) const {
  const auto refuse = [this](const std::string& what) {
    throw Error(Errc::invalid_argument, fmt::format("rank {}: dispatch_send: {}", world.rank, what));
  };
  if (tokens < 0 || tokens > config.max_tokens)
    refuse(fmt::format("{} tokens; allowed are 0 to max_tokens = {}", tokens, config.max_tokens));
  if (input.live_tokens != nullptr && tokens > input.tokens.rows)
    refuse(
        fmt::format("live_tokens is {}, but only {} rows of tokens were given", tokens, input.tokens.rows));
  if (tokens == 0) return;
  if (id_rows < tokens || id_cols != config.top_k)
    refuse(
        fmt::format("expert_ids is [{}, {}]; it must be [{}, {}]", id_rows, id_cols, tokens, config.top_k));
  if (input.tokens.hidden != config.hidden || input.tokens.dtype != config.token_dtype)
    refuse(fmt::format("tokens have hidden {} of {}; the config says {} of {}", input.tokens.hidden,
                       dtype_name(input.tokens.dtype), config.hidden, dtype_name(config.token_dtype)));
  if (input.tokens.data == nullptr) refuse("tokens.data is null");
  if (input.tokens.row_stride_bytes < input.tokens.row_bytes())
    refuse(fmt::format("token rows are {} bytes apart but {} bytes long", input.tokens.row_stride_bytes,
                       input.tokens.row_bytes()));
  if (config.presum && input.weights == nullptr)
    refuse("presum sums where the experts are, so the weights are needed here; weights is null");
  if (!plan.quantise && config.scale != ScaleType::none && input.scales == nullptr)
    refuse("tokens are fp8 with block scales, but scales is null");
}

template <class Id>
void AllToAll::Impl::refuse_id(std::int64_t token, std::int64_t k, Id id) const {
  const bool outside = id < -1 || id >= config.num_experts;
  throw Error(Errc::invalid_argument,
              outside ? fmt::format("rank {}: token {}, k {}: expert id {} is outside [-1, {}]", world.rank,
                                    token, k, id, config.num_experts - 1)
                      : fmt::format("rank {}: token {}, k {}: expert {} is named twice by this token",
                                    world.rank, token, k, id));
}

/// Fills owners and selected from all ids of the group, before anything is written anywhere.
template <class Id>
void AllToAll::Impl::check_ids(const TokenInput& input, std::int64_t tokens, View2<const Id> ids) {
  check_tokens(input, tokens, ids.rows, ids.cols);
  std::fill(selected.begin(), selected.end(), 0);
  std::int32_t* owner = owners.data();
  for (std::int64_t token = 0; token < tokens; ++token) {
    const Id* row = ids.row(token);
    ++stamp;
    for (std::int64_t k = 0; k < config.top_k; ++k) {
      const Id id = row[k];
      if (id < 0 || id >= config.num_experts) {
        if (id != -1) refuse_id(token, k, id);
        *owner++ = -1;
        continue;
      }
      if (seen[at(id)] == stamp) refuse_id(token, k, id);
      seen[at(id)] = stamp;
      const std::int32_t rank = owner_of[at(id)];
      if (!lives(rank)) {
        *owner++ = -1;
        continue;
      }
      *owner++ = rank;
      ++selected[at(rank)];
    }
  }
}

/// Brings this member's share of the tokens to the token buffer, unless they lie there.
void AllToAll::Impl::stage_tokens(const TokenInput& input, TokenShare share) {
  std::byte* const rows = buffer.local + plan.token_offset;
  std::byte* const scales = buffer.local + plan.token_scale_offset;
  if (plan.quantise) {
    const Quantisation how{config.payload, config.scale, config.scale_block};
    for (std::int64_t t = share.begin; t < share.end; ++t)
      kernels.quantise(input.tokens.row(t), config.token_dtype, config.hidden, how,
                       {rows + t * plan.row_bytes, scales + t * plan.row_scale_bytes});
    bytes.staged_tokens += (share.end - share.begin) * (plan.row_bytes + plan.row_scale_bytes);
    return;
  }
  if (input.tokens.data != rows || input.tokens.row_stride_bytes != plan.row_bytes) {
    for (std::int64_t t = share.begin; t < share.end; ++t)
      kernels.copy(rows + t * plan.row_bytes, input.tokens.row(t), plan.row_bytes);
    bytes.staged_tokens += (share.end - share.begin) * plan.row_bytes;
  }
  if (plan.row_scale_bytes != 0 && input.scales != scales) {
    kernels.copy(scales + share.begin * plan.row_scale_bytes,
                 static_cast<const std::byte*>(input.scales) + share.begin * plan.row_scale_bytes,
                 (share.end - share.begin) * plan.row_scale_bytes);
    bytes.staged_tokens += (share.end - share.begin) * plan.row_scale_bytes;
  }
}

/// Of what the members of a group must have in common: T, owners of all selections (the ids, as far as they
/// matter to anyone) and the tokens themselves.
std::uint64_t AllToAll::Impl::replica_hash(const TokenInput& input) const {
  std::uint64_t hash = hash_bytes(kHashSeed, &num_tokens, sizeof(num_tokens));
  for (std::int64_t t = 0; t < num_tokens; ++t)
    hash = hash_bytes(hash, input.tokens.row(t), input.tokens.row_bytes());
  if (!plan.quantise && plan.row_scale_bytes != 0)
    hash = hash_bytes(hash, input.scales, num_tokens * plan.row_scale_bytes);
  return hash;
}

/// Writes the entries of this member's share straight into the owners' announcement slots, then raises their
/// words.
template <class Id>
void AllToAll::Impl::announce(View2<const Id> ids, const TokenInput& input) {
  const TokenShare share = token_share(num_tokens, members, member);
  stage_tokens(input, share);

  std::fill(sent.begin(), sent.end(), 0);
  std::fill(sent_before.begin(), sent_before.end(), 0);
  const std::int32_t* owner = owners.data();
  for (std::int64_t i = 0; i < share.begin * config.top_k; ++i, ++owner)
    if (*owner >= 0) ++sent_before[at(*owner)];
  for (std::int64_t token = share.begin; token < share.end; ++token) {
    const Id* row = ids.row(token);
    for (std::int64_t k = 0; k < config.top_k; ++k, ++owner) {
      if (*owner < 0) continue;
      if (crossings.crosses(world.rank, *owner)) {
        ++sent[at(*owner)];
        continue;
      }
      const Entry entry{static_cast<std::uint32_t>(token), static_cast<std::uint32_t>(local_of[at(row[k])])};
      const std::int64_t place = sent[at(*owner)]++ * static_cast<std::int64_t>(sizeof(Entry));
      std::memcpy(announce_slot(*owner, world.rank) + plan.announce_header + place, &entry, sizeof(entry));
    }
  }

  std::uint64_t hash = 0;
  if (config.check_replicas) {
    hash = replica_hash(input);
    for (std::int64_t token = 0; token < num_tokens; ++token)
      for (std::int64_t k = 0; k < config.top_k; ++k) {
        const auto id = static_cast<std::int64_t>(ids(token, k));
        hash = hash_bytes(hash, &id, sizeof(id));
      }
  }
  // Own slot last: the peers wait for theirs.
  for (std::int32_t step = 1; step <= world.size; ++step) {
    const std::int32_t peer = (world.rank + step) % world.size;
    if (!lives(peer) || crossings.crosses(world.rank, peer)) continue;
    std::byte* header = announce_slot(peer, world.rank) + sizeof(std::uint64_t);
    if (config.check_replicas) {
      std::memcpy(header, &hash, sizeof(hash));
      header += sizeof(hash);
    }
    if (plan.bounded) std::memcpy(header, sent.data(), sent.size() * sizeof(sent[0]));
    transport.signal(buffer, peer, plan.announce_offset + world.rank * plan.announce_stride,
                     word(static_cast<std::uint32_t>(sent[at(peer)])));
  }
  if (crossings.any()) send_across(ids, input, hash, share);
}

/// After a void step nobody waited for the peers' combine, so their reading of our announcement and tokens is
/// not over until each has raised its word of that step.
void AllToAll::Impl::settle_void_step() {
  if (!void_step) return;
  const Deadline until = deadline();
  for (std::int32_t peer = 0; peer < world.size; ++peer)
    if (lives(peer))
      wait(plan.position_offset + peer * plan.position_stride, word(0), until, peer, Half::dispatch);
  void_step = false;
}

template <class Id>
void AllToAll::Impl::dispatch_send(const TokenInput& input, View2<const Id> ids) {
  expect_stage(Stage::idle, "dispatch_send");
  if (const auto loss = std::exchange(unreported_loss, std::nullopt); loss.has_value())
    throw_masked(*loss, epoch + 1);
  const std::int64_t begin = now_ns();
  const std::int64_t tokens = input.live_tokens != nullptr ? *input.live_tokens : input.tokens.rows;
  check_ids(input, tokens, ids);
  guarded([this] { settle_void_step(); });
  const auto released_on_return = std::move(old_memory);
  num_tokens = tokens;
  ++epoch;
  guarded([&] { announce(ids, input); });
  stage = Stage::dispatch_sent;
  times.publish_ns = now_ns() - begin;
}

template void AllToAll::Impl::dispatch_send(const TokenInput&, View2<const std::int32_t>);
template void AllToAll::Impl::dispatch_send(const TokenInput&, View2<const std::int64_t>);

}  // namespace shunt
