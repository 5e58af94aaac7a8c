#pragma once

#include <cstdint>

#include <shunt/device/context.h>
#include <shunt/device/convert.h>
#include <shunt/device/qualifiers.h>
#include <shunt/device/tasks.h>

#include "touch.h"

namespace shunt::bench {

SHUNT_DEVICE float touch_f8e4m3_to_f32(std::uint8_t bits) {
  const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x80U) << 24;
  const std::uint32_t magnitude = bits & 0x7fU;
  if (magnitude == 0x7f) return device::float_of(sign | 0x7fc00000U);
  if (magnitude >= 8) return device::float_of(sign | ((magnitude << 20) + (120U << 23)));
  return device::float_of(sign | device::bits_of(static_cast<float>(magnitude) * 0x1p-9F));  // exact
}

SHUNT_DEVICE float touch_load(DType dtype, const std::byte* row, std::int64_t i) {
  switch (dtype) {
    case DType::f32:
      return device::F32::load(row + 4 * i);
    case DType::f16:
      return device::F16::load(row + 2 * i);
    case DType::bf16:
      return device::Bf16::load(row + 2 * i);
    case DType::f8e4m3:
      return touch_f8e4m3_to_f32(static_cast<std::uint8_t>(row[i]));
    case DType::f8e5m2:
      return device::f16_to_f32(static_cast<std::uint16_t>(static_cast<std::uint16_t>(row[i]) << 8U));
  }
  return 0;
}

SHUNT_DEVICE void touch_store(DType dtype, std::byte* row, std::int64_t i, float value) {
  if (dtype == DType::f32)
    device::F32::store(row + 4 * i, value);
  else if (dtype == DType::f16)
    device::F16::store(row + 2 * i, value);
  else
    device::Bf16::store(row + 2 * i, value);
}

/// A warp touches a part of one row, lane by lane, so that loads and stores of a warp lie together. The same for every
/// method, and simple rather than as fast as can be: it stands for the experts.
struct TouchRows {
  static constexpr const char* kName = "touch_rows";
  static constexpr std::int32_t kThreads = 256;
  static constexpr std::int32_t kColumns = 8;  ///< Of a lane in one part
  static constexpr std::int64_t kPart = std::int64_t{kColumns} * device::kWarpSize;
  using Args = GpuTouch;

  template <class Context>
  static SHUNT_DEVICE void run(Context& ctx, const Args& t) {
    const std::int64_t parts = (t.hidden + kPart - 1) / kPart;
    const std::int64_t tasks = t.starts[t.num_experts] * parts;
    for (const std::int64_t task : device::tasks_of_warp(ctx, tasks)) {
      const std::int64_t row = task / parts;
      const std::int32_t expert = expert_of(t, row);
      if (row >= static_cast<std::int64_t>(t.starts[expert]) + t.counts[expert]) continue;
      const auto* from = t.row_pointers == nullptr
                             ? static_cast<const std::byte*>(t.rows.data) + row * t.rows.stride_bytes
                             : static_cast<const std::byte*>(t.row_pointers[row]);
      const float* scales = nullptr;
      if (t.num_scales > 0)
        scales = t.scale_pointers == nullptr ? t.scales + row * t.num_scales
                                             : static_cast<const float*>(t.scale_pointers[row]);
      std::byte* to = static_cast<std::byte*>(t.outputs.data) + row * t.outputs.stride_bytes;
      const std::int32_t id = t.first_expert + expert;
      const float factor = id % 3 == 0 ? 0.5F : id % 3 == 1 ? 1.0F : 2.0F;
      const std::int64_t begin = (task - row * parts) * kPart + ctx.lane();
      SHUNT_UNROLL
      for (std::int32_t i = 0; i < kColumns; ++i) {
        const std::int64_t column = begin + static_cast<std::int64_t>(i) * device::kWarpSize;
        if (column >= t.hidden) continue;
        const float x = touch_load(t.rows.dtype, from, column);
        const float scale = scales == nullptr ? 1.0F : scales[column / t.scale_block];
        touch_store(t.outputs.dtype, to, column, x * scale * factor);
      }
    }
  }

  /// The local expert whose block holds `row`: the last one that starts there or before.
  static SHUNT_DEVICE std::int32_t expert_of(const Args& t, std::int64_t row) {
    std::int32_t low = 0;
    std::int32_t high = t.num_experts;
    while (high - low > 1) {
      const std::int32_t middle = (low + high) / 2;
      if (t.starts[middle] <= row)
        low = middle;
      else
        high = middle;
    }
    return low;
  }
};

}  // namespace shunt::bench
