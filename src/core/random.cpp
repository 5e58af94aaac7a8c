#include <shunt/core/random.h>

#include <cmath>
#include <limits>

namespace shunt {
namespace {

constexpr std::uint32_t low32(std::uint64_t value) {
  return static_cast<std::uint32_t>(value);
}
constexpr std::uint32_t high32(std::uint64_t value) {
  return static_cast<std::uint32_t>(value >> 32);
}

}  // namespace

Random::Random(std::uint64_t seed, std::uint64_t stream) noexcept
    : counter_{0, 0, low32(stream), high32(stream)}, key_{low32(seed), high32(seed)} {}

void Random::refill() noexcept {
  std::array<std::uint32_t, 4> x = counter_;
  std::array<std::uint32_t, 2> key = key_;
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t a = std::uint64_t{0xD2511F53U} * x[0];
    const std::uint64_t b = std::uint64_t{0xCD9E8D57U} * x[2];
    x = {high32(b) ^ x[1] ^ key[0], low32(b), high32(a) ^ x[3] ^ key[1], low32(a)};
    key[0] += 0x9E3779B9U;
    key[1] += 0xBB67AE85U;
  }
  block_ = x;
  used_ = 0;
  // The position fills the lower half of the counter; 2^66 numbers per stream.
  if (++counter_[0] == 0) ++counter_[1];
}

std::uint32_t Random::next_u32() noexcept {
  if (used_ == block_.size()) refill();
  return block_[used_++];
}

std::uint64_t Random::next_u64() noexcept {
  const std::uint64_t low = next_u32();
  const std::uint64_t high = next_u32();
  return high << 32 | low;
}

std::uint64_t Random::below(std::uint64_t bound) noexcept {
  // Reject the lowest 2^64 mod bound values, so that the rest splits evenly.
  const std::uint64_t rejected = (0 - bound) % bound;
  for (;;) {
    const std::uint64_t value = next_u64();
    if (value >= rejected) return value % bound;
  }
}

double Random::uniform() noexcept {
  return static_cast<double>(next_u64() >> 11) * 0x1p-53;
}

double Random::normal() noexcept {
  double sum = 0;
  for (int i = 0; i < 12; ++i) sum += uniform();
  return sum - 6.0;
}

double portable_exp2(double value) noexcept {
  if (std::isnan(value)) return value;
  if (value >= 1024) return std::numeric_limits<double>::infinity();
  if (value < -1080) return 0;
  const double whole = std::floor(value + 0.5);
  const double x = (value - whole) * 0.693147180559945309417;  // |x| <= 0.347: 14 terms of the series suffice
  double sum = 1;
  for (int n = 14; n >= 1; --n) sum = 1 + sum * x / n;
  return std::ldexp(sum, static_cast<int>(whole));
}

double portable_log2(double value) noexcept {
  int exponent = 0;
  double mantissa = std::frexp(value, &exponent);  // [0.5, 1)
  if (mantissa < 0.70710678118654752440) {
    mantissa *= 2;
    --exponent;
  }
  // ln m = 2 atanh(s), s = (m - 1) / (m + 1), |s| <= 0.172.
  const double s = (mantissa - 1) / (mantissa + 1);
  const double s2 = s * s;
  double sum = 0;
  for (int n = 25; n >= 1; n -= 2) sum = sum * s2 + 1.0 / n;
  return exponent + 2 * s * sum * 1.44269504088896340736;
}

}  // namespace shunt
