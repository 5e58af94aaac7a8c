#pragma once

// The weighted sum of a token's rows: the one place of pack where the order of operations makes the bits.
#include <cstdint>

#include <shunt/device/context.h>
#include <shunt/device/convert.h>
#include <shunt/device/qualifiers.h>
#include <shunt/device/tasks.h>
#include <shunt/pack/cuda.h>

#include "move_kernels.h"

namespace shunt::cuda::detail {

/// Columns of one lane: 16 bytes of a two-byte format.
inline constexpr std::int32_t kColumns = 8;
/// Rows whose loads are under way at the same time.
inline constexpr std::int32_t kRowsAhead = 4;

struct CombineArgs {
  Combine combine;
};

SHUNT_DEVICE const float* weights_of(const Combine& c, std::int64_t token) {
  return c.weights + token * (c.weight_stride == 0 ? c.top_k : c.weight_stride);
}

/// `count` elements at `from`, by 16-byte loads where those are kColumns aligned ones.
template <class Format>
struct Columns {
  static constexpr std::int32_t kWords = kColumns / Format::kPerWord;
  Word16 words[kWords];

  template <class Context>
  SHUNT_DEVICE void load(Context& ctx, const std::byte* from) {
    SHUNT_UNROLL
    for (std::int32_t i = 0; i < kWords; ++i) words[i] = ctx.load16_once(from + 16 * i);
  }
  SHUNT_DEVICE void unpack(float* to) const {
    SHUNT_UNROLL
    for (std::int32_t i = 0; i < kWords; ++i) Format::unpack(words[i], to + i * Format::kPerWord);
  }
};

template <class Row, class Out>
struct CombineRows {
  static constexpr const char* kName = "combine_rows";
  static constexpr std::int32_t kThreads = 256;
  using Args = CombineArgs;

  template <class Context>
  static SHUNT_DEVICE void run(Context& ctx, const Args& args) {
    const Combine& c = args.combine;
    constexpr std::int64_t kPart = std::int64_t{kColumns} * kWarpSize;
    const std::int64_t parts = (c.hidden + kPart - 1) / kPart;
    const std::int64_t tasks = live_count(c.num_tokens, c.live_tokens) * parts;
    for (const std::int64_t task : device::tasks_of_warp(ctx, tasks)) {
      const std::int64_t token = task / parts;
      const std::int64_t column =
          (task - token * parts) * kPart + static_cast<std::int64_t>(ctx.lane()) * kColumns;
      const std::int64_t count = c.hidden - column;
      if (count <= 0) continue;
      std::byte* out = row_of(c.out, token) + column * Out::kBytes;
      const bool whole = count >= kColumns;
      float sum[kColumns];
      if (c.accumulate) {
        read(ctx, whole, out, count, sum);
      } else {
        SHUNT_UNROLL
        for (std::int32_t i = 0; i < kColumns; ++i) sum[i] = 0.0F;
      }
      if (whole && is_aligned(c.rows.data) && c.rows.stride_bytes % 16 == 0)
        add_aligned(ctx, c, token, column, sum);
      else
        add(c, token, column, count, sum);
      if (whole && is_aligned(out)) {
        SHUNT_UNROLL
        for (std::int32_t i = 0; i < kColumns / Out::kPerWord; ++i)
          ctx.store16_once(out + 16 * i, Out::pack(sum + i * Out::kPerWord));
      } else {
        SHUNT_UNROLL
        for (std::int32_t i = 0; i < kColumns; ++i)
          if (i < count) Out::store(out + i * Out::kBytes, sum[i]);
      }
    }
  }

  template <class Context>
  static SHUNT_DEVICE void read(Context& ctx, bool whole, const std::byte* out, std::int64_t count,
                                float* sum) {
    if (whole && is_aligned(out)) {
      Columns<Out> old;
      old.load(ctx, out);
      old.unpack(sum);
      return;
    }
    SHUNT_UNROLL
    for (std::int32_t i = 0; i < kColumns; ++i) sum[i] = i < count ? Out::load(out + i * Out::kBytes) : 0.0F;
  }

  /// kColumns columns of rows that begin at multiples of 16 bytes.
  template <class Context>
  static SHUNT_DEVICE void add_aligned(Context& ctx, const Combine& c, std::int64_t token,
                                       std::int64_t column, float* sum) {
    const std::int32_t* positions = c.positions + token * c.top_k;
    const float* weights = weights_of(c, token);
    for (std::int32_t first = 0; first < c.top_k; first += kRowsAhead) {
      Columns<Row> rows[kRowsAhead];
      std::int64_t at[kRowsAhead];
      SHUNT_UNROLL
      for (std::int32_t i = 0; i < kRowsAhead; ++i) {
        at[i] = first + i < c.top_k ? positions[first + i] : -1;
        if (at[i] >= 0) rows[i].load(ctx, row_of(c.rows, at[i]) + column * Row::kBytes);
      }
      SHUNT_UNROLL
      for (std::int32_t i = 0; i < kRowsAhead; ++i) {
        if (at[i] < 0) continue;
        float row[kColumns];
        rows[i].unpack(row);
        const float weight = weights[first + i];
        SHUNT_UNROLL
        for (std::int32_t j = 0; j < kColumns; ++j) sum[j] = device::fma(weight, row[j], sum[j]);
      }
    }
  }

  /// Up to kColumns columns, element by element.
  static SHUNT_DEVICE void add(const Combine& c, std::int64_t token, std::int64_t column, std::int64_t count,
                               float* sum) {
    for (std::int32_t k = 0; k < c.top_k; ++k) {
      const std::int64_t position = c.positions[token * c.top_k + k];
      if (position < 0) continue;
      const float weight = weights_of(c, token)[k];
      const std::byte* row = row_of(c.rows, position) + column * Row::kBytes;
      SHUNT_UNROLL
      for (std::int32_t i = 0; i < kColumns; ++i)
        if (i < count) sum[i] = device::fma(weight, Row::load(row + i * Row::kBytes), sum[i]);
    }
  }
};

}  // namespace shunt::cuda::detail
