#include "transport_bench_payload.h"

#include <algorithm>
#include <cstring>

namespace shunt::bench {
namespace {

constexpr std::int64_t kWord = sizeof(std::uint64_t);
constexpr std::int64_t kWordsTogether = 64;
constexpr std::uint64_t kStep = 0x9E3779B97F4A7C15ULL;

std::uint64_t mix(std::uint64_t value) noexcept {
  value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9ULL;
  value = (value ^ (value >> 27)) * 0x94D049BB133111EBULL;
  return value ^ (value >> 31);
}

/// First word; each further one is kStep more.
std::uint64_t first_word(const PayloadKey& key) noexcept {
  const auto ranks = static_cast<std::uint64_t>(key.sender) << 32 ^ static_cast<std::uint64_t>(key.receiver);
  const std::uint64_t place = mix(ranks + kStep) ^ mix(static_cast<std::uint64_t>(key.slot) + 2 * kStep);
  // The sequence number is added unmixed in the lowest byte: neighbours then differ there for certain.
  return (mix(key.sequence + place) & ~std::uint64_t{0xff}) | ((key.sequence + place) & 0xff);
}

}  // namespace

void fill_payload(std::byte* to, std::int64_t bytes, const PayloadKey& key) noexcept {
  std::uint64_t word = first_word(key);
  const std::int64_t words = bytes / kWord;
  for (std::int64_t i = 0; i < words; ++i, word += kStep) std::memcpy(to + i * kWord, &word, kWord);
  std::memcpy(to + words * kWord, &word, static_cast<std::size_t>(bytes % kWord));
}

std::int64_t first_wrong_byte(const std::byte* at, std::int64_t bytes, const PayloadKey& key) noexcept {
  const std::uint64_t first = first_word(key);
  const auto expected = [first](std::int64_t i) { return first + static_cast<std::uint64_t>(i) * kStep; };
  const std::int64_t words = bytes / kWord;
  for (std::int64_t begin = 0; begin < words; begin += kWordsTogether) {
    const std::int64_t end = std::min(words, begin + kWordsTogether);
    std::uint64_t differs = 0;
    for (std::int64_t i = begin; i < end; ++i) {
      std::uint64_t word = 0;
      std::memcpy(&word, at + i * kWord, kWord);
      differs |= word ^ expected(i);
    }
    if (differs == 0) continue;
    for (std::int64_t byte = begin * kWord; byte < end * kWord; ++byte) {
      const std::uint64_t word = expected(byte / kWord);
      if (std::memcmp(at + byte, reinterpret_cast<const std::byte*>(&word) + byte % kWord, 1) != 0)
        return byte;
    }
  }
  const std::uint64_t last = expected(words);
  for (std::int64_t byte = words * kWord; byte < bytes; ++byte)
    if (std::memcmp(at + byte, reinterpret_cast<const std::byte*>(&last) + byte % kWord, 1) != 0) return byte;
  return -1;
}

}  // namespace shunt::bench
