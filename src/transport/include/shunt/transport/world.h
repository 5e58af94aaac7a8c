#pragma once

#include <cstdint>

namespace shunt {

/// Who this rank is.
struct World {
  std::int32_t rank = 0;        ///< 0 <= rank < size
  std::int32_t size = 1;        ///< R
  std::int32_t local_rank = 0;  ///< Among the ranks of this node
  std::int32_t node = 0;
};

}  // namespace shunt
