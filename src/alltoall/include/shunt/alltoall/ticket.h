#pragma once

#include <cstdint>
#include <utility>

namespace shunt {

class AllToAll;

/// The two halves of a step.
enum class Half : std::uint8_t { dispatch, combine };

/// Receipt of a send half, to be handed to the matching receive half: order by type. Move-only; a moved-from
/// or already used receipt is refused with Errc::invalid_state.
template <Half half>
class [[nodiscard]] Sent {
 public:
  Sent(Sent&& other) noexcept : owner_(std::exchange(other.owner_, nullptr)), epoch_(other.epoch_) {}
  Sent& operator=(Sent&& other) noexcept {
    owner_ = std::exchange(other.owner_, nullptr);
    epoch_ = other.epoch_;
    return *this;
  }
  Sent(const Sent&) = delete;
  Sent& operator=(const Sent&) = delete;

 private:
  friend class AllToAll;
  Sent(const AllToAll* owner, std::uint32_t epoch) noexcept : owner_(owner), epoch_(epoch) {}
  const AllToAll* owner_;
  std::uint32_t epoch_;
};

}  // namespace shunt
