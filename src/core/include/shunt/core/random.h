#pragma once

#include <array>
#include <cstdint>

namespace shunt {

/// Counter-based random numbers (Philox 4x32, 10 rounds): the value is a pure function of (seed, stream,
/// position), the same on every platform, compiler and vector width.
/// Threads: one object per thread; different streams of one seed are independent.
/// Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC11.
class Random {
 public:
  explicit Random(std::uint64_t seed, std::uint64_t stream = 0) noexcept;

  std::uint32_t next_u32() noexcept;
  std::uint64_t next_u64() noexcept;
  /// Uniform in [0, bound), without bias; bound >= 1.
  std::uint64_t below(std::uint64_t bound) noexcept;
  /// Uniform in [0, 1), a multiple of 2^-53.
  double uniform() noexcept;
  /// Mean 0, variance 1: the sum of 12 uniforms less 6 (Irwin-Hall), so that only additions, which every platform
  /// rounds alike, are involved. Values lie in (-6, 6).
  double normal() noexcept;

 private:
  void refill() noexcept;
  std::array<std::uint32_t, 4> counter_{};
  std::array<std::uint32_t, 2> key_{};
  std::array<std::uint32_t, 4> block_{};
  std::uint32_t used_ = 4;
};

/// exp2 and log2 from IEEE additions, multiplications and divisions alone: the same bits on every platform
/// (std::exp2 and std::log2 differ between C libraries). Relative error below 1e-12. log2 wants a finite positive value.
[[nodiscard]] double portable_exp2(double value) noexcept;
[[nodiscard]] double portable_log2(double value) noexcept;

}  // namespace shunt
