#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include <shunt/alltoall/config.h>

namespace shunt {

/// Which rows cross between ranks that cannot load each other's memory, and where they land. A *home* is a set of
/// ranks that reach each other. Tokens of a source for an owner in another home land at one rank of that home: at the
/// owner itself (flat), or at the rank with the source's place among the ranks of its own home (hierarchical), so that
/// rank i of every home talks to rank i of the others and each NIC to its own rail. A landing rank covers the owners
/// whose rows land there; their results go back through it.
class Crossings {
 public:
  /// `homes` [R] of every rank; empty: all ranks are one home and nothing crosses. `path` automatic is decided here.
  /// `live` [R] leaves ranks with 0 out; empty: all live.
  Crossings(std::span<const std::int32_t> homes, std::int32_t num_ranks, Path path,
            std::span<const std::uint8_t> live = {});
  Crossings() = default;

  [[nodiscard]] bool any() const noexcept { return any_; }
  [[nodiscard]] bool hierarchical() const noexcept { return hierarchical_; }
  [[nodiscard]] bool crosses(std::int32_t a, std::int32_t b) const noexcept {
    return any_ && homes_[static_cast<std::size_t>(a)] != homes_[static_cast<std::size_t>(b)];
  }
  /// Rank where tokens of `source` for experts of `owner` land; the two are of different homes.
  [[nodiscard]] std::int32_t landing(std::int32_t source, std::int32_t owner) const noexcept;
  /// Owners that `landing` covers, in rank order.
  [[nodiscard]] std::span<const std::int32_t> covered(std::int32_t landing) const noexcept;
  /// Ranks of the home of `rank`, itself included.
  [[nodiscard]] std::span<const std::int32_t> home(std::int32_t rank) const noexcept;
  /// Landing ranks of a source, each once, nearest rank number after the source's own first.
  [[nodiscard]] std::vector<std::int32_t> destinations(std::int32_t source) const;
  /// Sources whose tokens land at `landing`, in rank order.
  [[nodiscard]] std::vector<std::int32_t> sources(std::int32_t landing) const;
  /// Place of `source` among sources(landing).
  [[nodiscard]] std::int32_t slot(std::int32_t source, std::int32_t landing) const;
  /// Most sources of any landing rank, and most destinations of any source.
  [[nodiscard]] std::int32_t max_slots() const noexcept { return max_slots_; }
  [[nodiscard]] std::int32_t max_destinations() const noexcept { return max_destinations_; }
  [[nodiscard]] std::int32_t max_covered() const noexcept { return max_covered_; }

 private:
  bool any_ = false;
  bool hierarchical_ = false;
  std::int32_t max_slots_ = 0;
  std::int32_t max_destinations_ = 0;
  std::int32_t max_covered_ = 0;
  std::vector<std::int32_t> homes_;                 ///< [R], numbered from 0
  std::vector<std::uint8_t> live_;                  ///< [R]
  std::vector<std::int32_t> place_;                 ///< [R] among the live ranks of its home
  std::vector<std::int32_t> ranks_;                 ///< [R] 0, 1, 2, …
  std::vector<std::vector<std::int32_t>> members_;  ///< By home
};

}  // namespace shunt
