#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace shunt {

/// Who this rank is, and which node each rank runs on.
struct World {
  std::int32_t rank = 0;                 ///< 0 <= rank < size
  std::int32_t size = 1;                 ///< R
  std::int32_t local_rank = 0;           ///< Among the ranks of this node, counted in rank order
  std::int32_t node = 0;                 ///< Nodes are numbered from 0 in the order of their lowest ranks
  std::vector<std::int32_t> nodes = {};  ///< [R] node of every rank; empty: all on node 0

  [[nodiscard]] std::int32_t node_of(std::int32_t of_rank) const noexcept {
    return nodes.empty() ? 0 : nodes[static_cast<std::size_t>(of_rank)];
  }
  [[nodiscard]] std::int32_t num_nodes() const noexcept {
    std::int32_t most = 0;
    for (const std::int32_t one : nodes) most = one > most ? one : most;
    return most + 1;
  }
};

}  // namespace shunt
