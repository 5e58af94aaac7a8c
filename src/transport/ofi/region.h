#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "net/network.h"
#include "ofi/fabric.h"

namespace shunt::ofi {

/// A second mapping of shared memory, which stays when the first one goes. Empty where the memory is not
/// shared or does not begin at a page.
class Alias {
 public:
  Alias() = default;
  Alias(std::byte* base, std::int64_t bytes);
  ~Alias();
  Alias(Alias&& other) noexcept;
  Alias& operator=(Alias&& other) noexcept;
  Alias(const Alias&) = delete;
  Alias& operator=(const Alias&) = delete;
  [[nodiscard]] std::byte* base() const noexcept { return base_; }

 private:
  std::byte* base_ = nullptr;
  std::size_t bytes_ = 0;
};

/// Words of a MemoryName here.
inline constexpr std::size_t kAddress = 0;
inline constexpr std::size_t kKey = 1;
inline constexpr std::size_t kGeneration = 2;

/// Memory of this rank that peers put to, and how it names theirs.
/// A provider ends a connection over which a put to unknown memory comes, and whatever was under way on it is
/// lost. So the registration outlives withdraw() until every peer has withdrawn its own memory too, which it
/// does after its last put; it is of an alias, since the caller's mapping goes with withdraw().
struct Region {
  std::int32_t id = -1;
  std::byte* base = nullptr;
  std::int64_t bytes = 0;
  std::uint32_t generation = 0;
  Alias alias;
  Handle<fid_mr> memory;
  std::vector<net::MemoryName> names;   ///< [R]
  std::vector<std::uint8_t> withdrawn;  ///< [R] peers that will put to it no more
};

}  // namespace shunt::ofi
