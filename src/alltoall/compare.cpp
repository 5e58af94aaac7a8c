#include "compare.h"

#include <array>
#include <chrono>
#include <vector>

#include <fmt/format.h>

#include <shunt/core/error.h>
#include <shunt/transport/collectives.h>
#include <shunt/transport/membership.h>
#include <shunt/transport/transport.h>
#include <shunt/transport/world.h>

namespace shunt {
namespace {

/// The config as numbers, in the order of kFieldNames, to compare between ranks. The last one is the caller's.
constexpr std::array kFieldNames = {"max_tokens",        "num_experts",    "top_k",    "hidden",
                                    "token_dtype",       "payload",        "scale",    "scale_block",
                                    "expert_dtype",      "out_dtype",      "dp_size",  "layout",
                                    "alignment",         "padding",        "delivery", "movement",
                                    "max_recv_rows",     "check_replicas", "deadline", "push_from_bytes",
                                    "stream_from_bytes", "path",           "presum",   "on_peer_loss",
                                    "check_messages",    "expert_output"};
using ConfigNumbers =
    std::array<std::int64_t, kFieldNames.size() + 1>;  // the last one: 1 where the rank refuses it

ConfigNumbers numbers_of(const AllToAllConfig& c, std::int64_t extra, bool refused) {
  const auto n = [](auto value) { return static_cast<std::int64_t>(value); };
  return {c.max_tokens,
          c.num_experts,
          c.top_k,
          c.hidden,
          n(c.token_dtype),
          n(c.payload),
          n(c.scale),
          c.scale_block,
          n(c.expert_dtype),
          n(c.out_dtype),
          c.dp_size,
          n(c.layout),
          c.alignment,
          n(c.padding),
          n(c.delivery),
          n(c.movement),
          c.max_recv_rows,
          n(c.check_replicas),
          c.deadline.count(),
          c.push_from_bytes,
          c.stream_from_bytes,
          n(c.path),
          n(c.presum),
          n(c.on_peer_loss),
          n(c.check_messages),
          extra,
          n(refused)};
}

}  // namespace

std::int64_t config_numbers_bytes() noexcept {
  return sizeof(ConfigNumbers);
}

void compare_configs(Collectives& collectives, const World& world, const AllToAllConfig& config,
                     const std::function<void()>& check, bool expert_output) {
  // A rank that refuses its config still takes part, so that the others learn it instead of waiting.
  bool refused = false;
  Error reason(Errc::internal, "");
  try {
    check();
  } catch (const Error& error) {
    refused = true;
    reason = error;
  }
  const ConfigNumbers mine = numbers_of(config, expert_output ? 1 : 0, refused);
  std::vector<ConfigNumbers> all(static_cast<std::size_t>(world.size));
  collectives.allgather(mine.data(), sizeof(mine), all.data(), kSetupDeadline);
  if (refused) throw reason;
  for (std::size_t rank = 0; rank < all.size(); ++rank) {
    for (std::size_t field = 0; field < kFieldNames.size(); ++field)
      if (all[rank][field] != mine[field])
        throw Error(
            Errc::invalid_argument,
            fmt::format(
                "AllToAll config: rank {} has {} = {}, rank {} has {}; all ranks must pass equal values",
                world.rank, kFieldNames[field], mine[field], rank, all[rank][field]));
    if (all[rank].back() != 0)
      throw Error(Errc::invalid_argument, fmt::format("AllToAll config: rank {} refused its config", rank));
  }
}

std::unique_ptr<Membership> make_membership(Transport& transport) {
  if (!transport.capabilities().maskable)
    throw Error(
        Errc::unavailable,
        fmt::format("AllToAll config: on_peer_loss is mask, but transport {} cannot go on without a rank",
                    transport.name()));
  return std::make_unique<Membership>(transport, Clock::now() + kSetupDeadline);
}

}  // namespace shunt
