#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <vector>

#include <shunt/core/dtype.h>
#include <shunt/core/random.h>

#include "context_kernels.h"

namespace shunt::test {

/// Every upper half of a float with lower halves at and beside the ties, then anything.
inline std::vector<float> many_floats() {
  std::vector<float> values;
  const auto add = [&](std::uint32_t bits) {
    float value = 0;
    std::memcpy(&value, &bits, sizeof value);
    values.push_back(value);
  };
  for (const std::uint32_t low :
       {0x0000U, 0x0001U, 0x7fffU, 0x8000U, 0x8001U, 0xffffU, 0x1000U, 0x0fffU, 0x1001U})
    for (std::uint32_t high = 0; high < 65536; ++high) add(high << 16 | low);
  Random random(7);
  for (int i = 0; i < 200'000; ++i) add(random.next_u32());
  return values;
}

/// Runs the kernels of context_kernels.h on a device and looks at what they left. A device has
/// array<T>(count), memory of zeros that kernels reach and, after run<Kernel>(blocks, args), the host too.
template <class Device>
void check_warp_operations(Device& device) {
  constexpr std::int32_t kBlocks = 3;
  constexpr std::int32_t kCount = kBlocks * WarpOperations::kThreads;
  const WarpOperations::Args args{
      device.template array<std::int32_t>(kCount),  device.template array<float>(kCount),
      device.template array<std::int32_t>(kCount),  device.template array<std::uint32_t>(kCount),
      device.template array<std::uint32_t>(kCount), device.template array<std::int32_t>(kCount)};
  device.template run<WarpOperations>(kBlocks, args);
  for (std::int32_t i = 0; i < kCount; ++i) {
    const std::int32_t thread = i % 64;
    const std::int32_t lane = thread % 32;
    ASSERT_EQ(args.shuffle[i], 100 + (lane + 5) % 32);
    ASSERT_EQ(args.shuffle_xor[i], static_cast<float>(thread ^ 3));
    ASSERT_EQ(args.shuffle_up[i], lane < 2 ? lane : lane - 2);
    ASSERT_EQ(args.ballot[i], thread < 32 ? 0x49249249U : 0xffffffffU);
    ASSERT_EQ(args.match_any[i], lane >= 30 ? 0xc0000000U : 0x3ffU << (10 * (lane / 10)));
    ASSERT_EQ(args.reversed[i], i / 64 * 1000 + 63 - thread);
  }
}

template <class Device>
void check_counters(Device& device) {
  constexpr std::uint64_t kBlocks = 4;
  const Counters::Args args{device.template array<std::uint64_t>(1), device.template array<std::uint32_t>(1),
                            device.template array<std::uint64_t>(1), device.template array<std::uint64_t>(1)};
  device.template run<Counters>(kBlocks, args);
  EXPECT_EQ(*args.wide, kBlocks * 64 * 3);
  EXPECT_EQ(*args.narrow, kBlocks * 64 * 2);
  EXPECT_EQ(*args.locked, kBlocks);
  EXPECT_EQ(*args.lock, 0U);
}

template <class Device>
void check_exchange(Device& device, std::int32_t silent, std::uint64_t deadline_ns) {
  constexpr std::int32_t kRanks = 4;
  const Exchange::Args args{device.template array<device::Word16>(kRanks * kRanks),
                            device.template array<std::uint64_t>(kRanks * kRanks),
                            device.template array<std::uint32_t>(kRanks * kRanks),
                            device.template array<std::int64_t>(kRanks * kRanks),
                            silent,
                            deadline_ns};
  device.template run<Exchange>(kRanks, args);
  for (std::int32_t me = 0; me < kRanks; ++me)
    for (std::int32_t peer = 0; peer < kRanks; ++peer) {
      const std::int64_t value = 100 * peer + me;
      ASSERT_EQ(args.out[me * kRanks + peer], peer == silent ? -1 : value * 1000 + value);
    }
}

template <class Device>
void check_conversions(Device& device) {
  const std::vector<float> values = many_floats();
  const auto count = static_cast<std::int32_t>(values.size());
  float* from = device.template array<float>(count);
  std::copy(values.begin(), values.end(), from);
  const Conversions::Args args{from,
                               count,
                               device.template array<std::uint16_t>(count),
                               device.template array<std::uint16_t>(count),
                               device.template array<std::uint16_t>(count),
                               device.template array<std::uint16_t>(count),
                               device.template array<float>(count),
                               device.template array<float>(count),
                               device.template array<float>(count)};
  device.template run<Conversions>(8, args);
  // Bits, but any NaN for a NaN.
  const auto same = [](float a, float b) {
    return (std::isnan(a) && std::isnan(b)) || std::memcmp(&a, &b, sizeof a) == 0;
  };
  for (std::int32_t i = 0; i < count; ++i) {
    const float value = values[static_cast<std::size_t>(i)];
    const float next = values[static_cast<std::size_t>(i + 1 < count ? i + 1 : 0)];
    std::uint32_t bits = 0;
    std::memcpy(&bits, &value, sizeof bits);
    ASSERT_TRUE(same(bf16_to_f32(args.bf16[i]), bf16_to_f32(f32_to_bf16(value)))) << value;
    ASSERT_TRUE(same(f16_to_f32(args.f16[i]), f16_to_f32(f32_to_f16(value)))) << value;
    const auto byte = [](std::uint16_t pair, int which) {
      return static_cast<std::uint8_t>((which == 0 ? pair : pair >> 8) & 0xff);
    };
    for (int which = 0; which < 2; ++which) {
      const float signed_value = which == 0 ? value : -value;
      ASSERT_TRUE(same(f8e4m3_to_f32(byte(args.e4m3[i], which)), f8e4m3_to_f32(f32_to_f8e4m3(signed_value))))
          << value;
      ASSERT_TRUE(same(f8e5m2_to_f32(byte(args.e5m2[i], which)), f8e5m2_to_f32(f32_to_f8e5m2(signed_value))))
          << value;
    }
    ASSERT_TRUE(same(args.widened[i], f16_to_f32(static_cast<std::uint16_t>(bits >> 16)))) << bits;
    ASSERT_TRUE(same(args.quotient[i], value / next)) << value << " / " << next;
    ASSERT_TRUE(same(args.fused[i], std::fma(value, next, value))) << value << ", " << next;
  }
}

}  // namespace shunt::test
