#pragma once

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include <shunt/core/dtype.h>
#include <shunt/core/random.h>
#include <shunt/pack/kernels.h>

namespace shunt::test {

inline constexpr std::array kWideDTypes = {DType::f32, DType::f16, DType::bf16};
inline constexpr std::array kAllDTypes = {DType::f32, DType::f16, DType::bf16, DType::f8e4m3, DType::f8e5m2};
inline constexpr std::array kScaleTypes = {ScaleType::none, ScaleType::f32, ScaleType::ue8m0};

/// `bytes` usable bytes at any offset from a cache line, with guard bytes on both sides.
class GuardedBuffer {
 public:
  explicit GuardedBuffer(std::int64_t bytes, std::size_t offset = 0)
      : memory_(static_cast<std::size_t>(bytes) + 3 * kGuard, kPattern),
        bytes_(static_cast<std::size_t>(bytes)) {
    const auto base = reinterpret_cast<std::uintptr_t>(memory_.data());
    start_ = (kGuard - base % kGuard) % kGuard + kGuard + offset % kGuard;
  }
  [[nodiscard]] unsigned char* data() { return memory_.data() + start_; }
  [[nodiscard]] const unsigned char* data() const { return memory_.data() + start_; }
  [[nodiscard]] std::size_t size() const { return bytes_; }
  /// True while no byte outside of the buffer has changed.
  [[nodiscard]] bool guards_intact() const {
    for (std::size_t i = 0; i < memory_.size(); ++i)
      if ((i < start_ || i >= start_ + bytes_) && memory_[i] != kPattern) return false;
    return true;
  }
  [[nodiscard]] bool operator==(const GuardedBuffer& other) const {
    return bytes_ == other.bytes_ && (bytes_ == 0 || std::memcmp(data(), other.data(), bytes_) == 0);
  }

 private:
  static constexpr std::size_t kGuard = 64;
  static constexpr unsigned char kPattern = 0xa5;
  std::vector<unsigned char> memory_;
  std::size_t bytes_;
  std::size_t start_ = 0;
};

/// Index of the first element that differs, NaN equal to NaN; -1 where there is none.
inline std::int64_t first_difference(DType dtype, const GuardedBuffer& a, const GuardedBuffer& b) {
  const std::int64_t bytes = dtype_bytes(dtype);
  for (std::int64_t i = 0; i * bytes < static_cast<std::int64_t>(a.size()); ++i) {
    const bool same =
        std::memcmp(a.data() + i * bytes, b.data() + i * bytes, static_cast<std::size_t>(bytes)) == 0;
    if (!same &&
        !(std::isnan(load_element(dtype, a.data(), i)) && std::isnan(load_element(dtype, b.data(), i))))
      return i;
  }
  return -1;
}

/// Numbers as they come in practice, with now and then any bit pattern at all: NaN, infinity, subnormals.
inline void fill_elements(Random& random, DType dtype, GuardedBuffer& buffer, bool any_bits) {
  const std::int64_t count = static_cast<std::int64_t>(buffer.size()) / dtype_bytes(dtype);
  for (std::int64_t i = 0; i < count; ++i) {
    store_element(dtype, buffer.data(), i, static_cast<float>(random.normal()));
    if (!any_bits || random.below(8) != 0) continue;
    const std::uint32_t bits = random.next_u32();
    std::memcpy(buffer.data() + i * dtype_bytes(dtype), &bits, static_cast<std::size_t>(dtype_bytes(dtype)));
  }
}

/// Lengths around every vector and block width, and now and then a long one.
inline std::int64_t random_length(Random& random) {
  return static_cast<std::int64_t>(random.below(random.below(4) == 0 ? 1500 : 140));
}

/// One case list, every instruction set: those this CPU cannot run are skipped by name.
class PackTest : public ::testing::TestWithParam<Isa> {
 protected:
  void SetUp() override {
    for (const Isa isa : available_isas())
      if (isa == GetParam()) kernels_ = &pack_kernels(isa);
    if (kernels_ == nullptr)
      GTEST_SKIP() << isa_name(GetParam()) << " is not available on this CPU or in this build";
  }
  [[nodiscard]] const PackKernels& kernels() const { return *kernels_; }
  [[nodiscard]] static const PackKernels& reference() { return pack_kernels(Isa::scalar); }

 private:
  const PackKernels* kernels_ = nullptr;
};

}  // namespace shunt::test

#define SHUNT_FOR_EVERY_ISA(suite)                                                                        \
  INSTANTIATE_TEST_SUITE_P(Isa, suite, ::testing::Values(Isa::scalar, Isa::avx2, Isa::avx512, Isa::neon), \
                           [](const auto& param) { return std::string(isa_name(param.param)); })
