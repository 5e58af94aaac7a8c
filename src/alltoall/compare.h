#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>

#include <shunt/alltoall/config.h>

namespace shunt {

class Collectives;
class Membership;
class Transport;
struct World;

/// Longest wait of the constructor, which config.deadline does not bound: peers may still be busy with their
/// own set-up.
inline constexpr std::chrono::milliseconds kSetupDeadline{60'000};

/// What compare_configs needs collectives to carry.
[[nodiscard]] std::int64_t config_numbers_bytes() noexcept;

/// Collective. Calls `check`, which throws where this rank refuses its config, and compares the configs of all ranks.
/// Errors: what `check` threw; invalid_argument where ranks differ or another rank refused; timeout and peer_lost.
void compare_configs(Collectives& collectives, const World& world, const AllToAllConfig& config,
                     const std::function<void()>& check, bool expert_output = true);

/// Collective. What an AllToAll whose config masks lost peers agrees by.
/// Errors: Errc::unavailable where `transport` cannot go on without a rank.
[[nodiscard]] std::unique_ptr<Membership> make_membership(Transport& transport);

}  // namespace shunt
