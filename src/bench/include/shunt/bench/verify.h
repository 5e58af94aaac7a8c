#pragma once

#include <cstdint>
#include <set>
#include <string>

#include <shunt/bench/method.h>

namespace shunt::bench {

/// 64-bit hash of bytes, the same on every platform of one byte order.
[[nodiscard]] std::uint64_t hash_bytes(const void* data, std::int64_t bytes, std::uint64_t seed = 0) noexcept;

/// Checks what a method delivered to one rank. Shares no arithmetic with the library: token rows are compared
/// byte by byte with the workload, combined tokens with sums in double.
class Verifier {
 public:
  Verifier(const Workload& workload, std::int32_t rank) : workload_(workload), rank_(rank) {}

  /// Empty where every row is right; else which is not and how.
  [[nodiscard]] std::string check_rows(const ArrivedRows& arrived) const;
  /// The same for combined tokens; `hash` gets the hash of their bytes. Bits that were checked before are
  /// recognised by their hash. `presum`: partial sums were rounded on their way (MethodSpec::presum), which
  /// allows one rounding more.
  [[nodiscard]] std::string check_combined(const std::byte* combined, std::uint64_t* hash,
                                           bool presum = false);

 private:
  [[nodiscard]] std::string check_sums(const std::byte* combined, bool presum) const;
  const Workload& workload_;
  std::int32_t rank_;
  std::set<std::uint64_t> known_good_[2];  ///< By `presum`: each bound has its own
};

}  // namespace shunt::bench
