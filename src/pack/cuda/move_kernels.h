#pragma once

// Rows to their places. The unit of work is a part of a row that one warp moves, so a few tokens also fill the device.
#include <cstdint>

#include <shunt/device/context.h>
#include <shunt/device/convert.h>
#include <shunt/device/qualifiers.h>
#include <shunt/device/tasks.h>
#include <shunt/pack/cuda.h>

namespace shunt::cuda::detail {

using device::kWarpSize;
using device::Word16;

/// Tokens (or rows) that count now: the host's bound or what the device says.
SHUNT_DEVICE std::int64_t live_count(std::int64_t most, const std::int32_t* live) {
  const std::int64_t now = live == nullptr ? most : *live;
  return now < 0 ? 0 : now < most ? now : most;
}

SHUNT_DEVICE std::byte* row_of(const DeviceRows& rows, std::int64_t row) {
  return static_cast<std::byte*>(rows.data) + row * rows.stride_bytes;
}

SHUNT_DEVICE bool is_aligned(const void* at) {
  return reinterpret_cast<std::uintptr_t>(at) % sizeof(Word16) == 0;
}

/// Where the scale of block `b` of `row` lies. num_scales: of a row.
SHUNT_DEVICE std::int64_t scale_offset(const Scales& scales, std::int64_t num_scales, std::int64_t row,
                                       std::int64_t b) {
  const bool wide = scales.type == ScaleType::f32;
  if (scales.layout == ScaleLayout::row_major) return (row * num_scales + b) * (wide ? 4 : 1);
  std::int64_t first = 0;  // column of the row's matrix
  if (scales.matrix_rows > 0) {
    const std::int64_t matrix = row / scales.matrix_rows;
    first = matrix * (wide ? num_scales : (num_scales + 3) / 4);
    row -= matrix * scales.matrix_rows;
  }
  return wide ? ((first + b) * scales.stride + row) * 4 : ((first + b / 4) * scales.stride + row) * 4 + b % 4;
}

/// Writes one scale, its power (ue8m0) or its bits (f32), and after the last of a row what is left of the 32-bit word.
SHUNT_DEVICE void store_scale(const Scales& scales, std::int64_t num_scales, std::int64_t row, std::int64_t b,
                              std::uint32_t value) {
  std::byte* at = static_cast<std::byte*>(scales.data) + scale_offset(scales, num_scales, row, b);
  if (scales.type == ScaleType::f32) {
    *reinterpret_cast<std::uint32_t*>(at) = value;
    return;
  }
  *at = static_cast<std::byte>(value);
  if (scales.layout == ScaleLayout::column_major && b + 1 == num_scales)
    for (std::int64_t i = b % 4 + 1; i < 4; ++i) *++at = std::byte{0};
}

SHUNT_DEVICE std::uint32_t load_scale(const Scales& scales, std::int64_t num_scales, std::int64_t row,
                                      std::int64_t b) {
  const std::byte* at = static_cast<const std::byte*>(scales.data) + scale_offset(scales, num_scales, row, b);
  if (scales.type == ScaleType::f32) return *reinterpret_cast<const std::uint32_t*>(at);
  return static_cast<std::uint32_t>(*at);
}

/// What moves at once: 16 bytes where addresses and strides are multiples of 16, else the widest that fits them.
template <std::int32_t Bytes>
struct Unit;
template <>
struct Unit<16> {
  using Type = Word16;
  template <class Context>
  static SHUNT_DEVICE Type load(Context& ctx, const std::byte* at) {
    return ctx.load16_once(at);
  }
  template <class Context>
  static SHUNT_DEVICE void store(Context& ctx, std::byte* at, const Type& value) {
    ctx.store16_once(at, value);
  }
};
template <class Word>
struct PlainUnit {
  using Type = Word;
  template <class Context>
  static SHUNT_DEVICE Type load(Context& /*ctx*/, const std::byte* at) {
    return *reinterpret_cast<const Word*>(at);
  }
  template <class Context>
  static SHUNT_DEVICE void store(Context& /*ctx*/, std::byte* at, Type value) {
    *reinterpret_cast<Word*>(at) = value;
  }
};
template <>
struct Unit<4> : PlainUnit<std::uint32_t> {};
template <>
struct Unit<2> : PlainUnit<std::uint16_t> {};
template <>
struct Unit<1> : PlainUnit<std::uint8_t> {};

/// Units that a lane holds in registers, which are so many loads under way before the first store.
inline constexpr std::int32_t kUnitsPerLane = 4;

/// One part of a row: kUnitsPerLane units for each lane, or what is left, then its last bytes one by one.
template <std::int32_t Bytes>
struct RowPart {
  static constexpr std::int64_t kBytes = std::int64_t{Bytes} * kUnitsPerLane * kWarpSize;
  using U = Unit<Bytes>;
  typename U::Type units[kUnitsPerLane] = {};
  std::byte tail{};
  std::int64_t begin;   ///< Of this lane's first unit in the row
  std::int64_t end;     ///< Of the row's whole units
  std::int64_t single;  ///< The byte of the tail that is this lane's, or row_bytes

  template <class Context>
  SHUNT_DEVICE void load(Context& ctx, const std::byte* row, std::int64_t row_bytes, std::int64_t part) {
    begin = part * kBytes + static_cast<std::int64_t>(ctx.lane()) * Bytes;
    end = row_bytes / Bytes * Bytes;
    SHUNT_UNROLL
    for (std::int32_t i = 0; i < kUnitsPerLane; ++i) {
      const std::int64_t at = begin + static_cast<std::int64_t>(i) * Bytes * kWarpSize;
      if (at < end) units[i] = U::load(ctx, row + at);
    }
    // Fewer bytes than lanes are left, and they belong to the last part.
    single = (part + 1) * kBytes >= row_bytes ? end + ctx.lane() : row_bytes;
    if (single < row_bytes) tail = row[single];
  }

  template <class Context>
  SHUNT_DEVICE void store(Context& ctx, std::byte* row, std::int64_t row_bytes) const {
    SHUNT_UNROLL
    for (std::int32_t i = 0; i < kUnitsPerLane; ++i) {
      const std::int64_t at = begin + static_cast<std::int64_t>(i) * Bytes * kWarpSize;
      if (at < end) U::store(ctx, row + at, units[i]);
    }
    if (single < row_bytes) row[single] = tail;
  }

  static SHUNT_DEVICE std::int64_t parts_of(std::int64_t row_bytes) {
    return row_bytes == 0
               ? 1
               : (row_bytes + kBytes - 1) / kBytes;  // a row of no bytes may still have scales to move
  }
};

struct GatherArgs {
  Gather gather;
  std::int64_t row_bytes = 0;
  std::int64_t num_scales = 0;  ///< Of a row; 0: none
};

SHUNT_DEVICE std::int64_t destination(const Gather& g, std::int64_t token, std::int32_t k) {
  return g.positions == nullptr ? token : g.positions[token * g.top_k + k];
}

/// Tokens to their rows as they are.
template <std::int32_t Bytes>
struct GatherCopy {
  static constexpr const char* kName = "gather_copy";
  static constexpr std::int32_t kThreads = 256;
  using Args = GatherArgs;

  template <class Context>
  static SHUNT_DEVICE void run(Context& ctx, const Args& args) {
    const Gather& g = args.gather;
    const std::int64_t parts = RowPart<Bytes>::parts_of(args.row_bytes);
    const std::int64_t tasks = live_count(g.num_tokens, g.live_tokens) * parts;
    for (const std::int64_t task : device::tasks_of_warp(ctx, tasks)) {
      const std::int64_t token = task / parts;
      const std::int64_t part = task - token * parts;
      RowPart<Bytes> data;
      data.load(ctx, row_of(g.from, token), args.row_bytes, part);
      for (std::int32_t k = 0; k < g.top_k; ++k) {
        const std::int64_t row = destination(g, token, k);
        if (row >= 0) data.store(ctx, row_of(g.to, row), args.row_bytes);
      }
      if (part != 0) continue;
      for (std::int64_t b = ctx.lane(); b < args.num_scales; b += kWarpSize) {
        const std::uint32_t scale = load_scale(g.from_scales, args.num_scales, token, b);
        for (std::int32_t k = 0; k < g.top_k; ++k) {
          const std::int64_t row = destination(g, token, k);
          if (row >= 0) store_scale(g.scales, args.num_scales, row, b, scale);
        }
      }
    }
  }
};

/// Elements that one lane quantises at once: 16 bytes of fp8.
inline constexpr std::int32_t kChunk = 16;

/// Lanes that share a scale block: enough for one chunk each, a power of two, at most a warp.
SHUNT_HOST_DEVICE constexpr std::int32_t lanes_per_block(std::int64_t block) {
  std::int32_t lanes = 1;
  while (lanes < kWarpSize && lanes * kChunk < block) lanes *= 2;
  return lanes;
}

/// `count` elements at `from`, by 16-byte loads where that is a whole aligned chunk.
template <class From, class Context>
SHUNT_DEVICE void load_chunk(Context& ctx, const std::byte* from, std::int64_t count, float* to) {
  if (count >= kChunk && is_aligned(from)) {
    constexpr std::int32_t kWords = kChunk / From::kPerWord;
    Word16 words[kWords];
    SHUNT_UNROLL
    for (std::int32_t i = 0; i < kWords; ++i) words[i] = ctx.load16(from + 16 * i);
    SHUNT_UNROLL
    for (std::int32_t i = 0; i < kWords; ++i) From::unpack(words[i], to + i * From::kPerWord);
    return;
  }
  SHUNT_UNROLL
  for (std::int32_t i = 0; i < kChunk; ++i) to[i] = i < count ? From::load(from + i * From::kBytes) : 0.0F;
}

/// The scale of a block with this largest magnitude and, through `stored`, what is written for it. To: the fp8 format.
template <class To>
SHUNT_DEVICE float scale_of(ScaleType type, float amax, std::uint32_t& stored) {
  const float scale = device::divide(amax > 1e-4F ? amax : 1e-4F, To::kLargest);
  if (type == ScaleType::ue8m0) {
    const std::uint8_t power = device::f32_to_ue8m0(scale);
    stored = power;
    return device::ue8m0_to_f32(power);
  }
  stored = device::bits_of(scale);
  return scale;
}

/// Parts of a row of `hidden` elements: one warp quantises one, a group of lanes for each scale block.
SHUNT_HOST_DEVICE constexpr std::int64_t quantise_parts(std::int64_t hidden, std::int64_t block) {
  const std::int64_t per_part = kWarpSize / lanes_per_block(block);
  return ((hidden + block - 1) / block + per_part - 1) / per_part;
}

/// Writes the first `count` of 16 bytes to `to`.
template <class Context>
SHUNT_DEVICE void store_some(Context& ctx, std::byte* to, const Word16& packed, std::int64_t count) {
  if (count >= kChunk && is_aligned(to)) return ctx.store16_once(to, packed);
  SHUNT_UNROLL
  for (std::int32_t i = 0; i < kChunk; ++i)
    if (i < count) to[i] = static_cast<std::byte>(packed.word[i / 4] >> (8 * (i % 4)) & 0xffU);
}

/// Quantises part `part` of the row at `row`: the largest magnitude of each block, its scale, its elements. The whole warp.
/// writer.elements(ctx, column, count, packed) gets up to a chunk of elements from `column` on, writer.scale(b, stored) the
/// scale of block b; each is called by one lane.
template <class From, class To, class Context, class Writer>
SHUNT_DEVICE void quantise_part(Context& ctx, const std::byte* row, std::int64_t hidden, ScaleType type,
                                std::int64_t block, std::int64_t part, const Writer& writer) {
  const std::int32_t group = lanes_per_block(block);
  const std::int32_t lane = ctx.lane() % group;
  const std::int64_t b = part * (kWarpSize / group) + ctx.lane() / group;
  const std::int64_t begin = b * block;
  const std::int64_t left = hidden - begin;  // not above 0 for a group that has no block in this part
  const std::int64_t length = left < block ? left : block;
  const std::int64_t chunk_step = static_cast<std::int64_t>(group) * kChunk;
  const std::byte* from = row + begin * From::kBytes;
  float values[kChunk];
  float scale = 1;
  std::uint32_t stored = 0;
  if (type != ScaleType::none) {
    float amax = 0;
    for (std::int64_t c = static_cast<std::int64_t>(lane) * kChunk; c < length; c += chunk_step) {
      load_chunk<From>(ctx, from + c * From::kBytes, length - c, values);
      SHUNT_UNROLL
      for (std::int32_t i = 0; i < kChunk; ++i) {
        const float magnitude = device::float_of(device::bits_of(values[i]) & 0x7fffffffU);
        if (magnitude > amax) amax = magnitude;  // false for NaN, which so stays out of the maximum
      }
    }
    for (std::int32_t distance = group / 2; distance > 0; distance /= 2) {
      const float other = ctx.shuffle_xor(amax, distance);
      if (other > amax) amax = other;
    }
    scale = scale_of<To>(type, amax, stored);
  }
  const bool reload = type == ScaleType::none || block > chunk_step;
  for (std::int64_t c = static_cast<std::int64_t>(lane) * kChunk; c < length; c += chunk_step) {
    if (reload) load_chunk<From>(ctx, from + c * From::kBytes, length - c, values);
    SHUNT_UNROLL
    for (std::int32_t i = 0; i < kChunk; ++i) values[i] = device::divide(values[i], scale);
    writer.elements(ctx, begin + c, length - c, To::pack(values));
  }
  if (lane == 0 && length > 0 && type != ScaleType::none) writer.scale(b, stored);
}

/// Tokens to their rows as fp8. A group of lanes makes one scale block: its largest magnitude, the scale, the elements.
template <class From, class To>
struct GatherQuantise {
  static constexpr const char* kName = "gather_quantise";
  static constexpr std::int32_t kThreads = 256;
  using Args = GatherArgs;

  /// To all rows of one token.
  struct Writer {
    const Gather* gather;
    std::int64_t token;
    std::int64_t num_blocks;

    template <class Context>
    SHUNT_DEVICE void elements(Context& ctx, std::int64_t column, std::int64_t count,
                               const Word16& packed) const {
      for (std::int32_t k = 0; k < gather->top_k; ++k) {
        const std::int64_t row = destination(*gather, token, k);
        if (row >= 0) store_some(ctx, row_of(gather->to, row) + column, packed, count);
      }
    }
    SHUNT_DEVICE void scale(std::int64_t b, std::uint32_t stored) const {
      for (std::int32_t k = 0; k < gather->top_k; ++k) {
        const std::int64_t row = destination(*gather, token, k);
        if (row >= 0) store_scale(gather->scales, num_blocks, row, b, stored);
      }
    }
  };

  template <class Context>
  static SHUNT_DEVICE void run(Context& ctx, const Args& args) {
    const Gather& g = args.gather;
    const std::int64_t block = g.scales.block;
    const std::int64_t parts = quantise_parts(g.hidden, block);
    const std::int64_t tasks = live_count(g.num_tokens, g.live_tokens) * parts;
    for (const std::int64_t task : device::tasks_of_warp(ctx, tasks)) {
      const std::int64_t token = task / parts;
      quantise_part<From, To>(ctx, row_of(g.from, token), g.hidden, g.scales.type, block,
                              task - token * parts, Writer{&g, token, (g.hidden + block - 1) / block});
    }
  }
};

struct ScatterArgs {
  Scatter scatter;
  std::int64_t row_bytes = 0;
  std::int64_t num_scales = 0;  ///< Of a row; 0: none
};

/// Rows to other rows.
template <std::int32_t Bytes>
struct ScatterCopy {
  static constexpr const char* kName = "scatter_copy";
  static constexpr std::int32_t kThreads = 256;
  using Args = ScatterArgs;

  template <class Context>
  static SHUNT_DEVICE void run(Context& ctx, const Args& args) {
    const Scatter& s = args.scatter;
    const std::int64_t parts = RowPart<Bytes>::parts_of(args.row_bytes);
    const std::int64_t tasks = live_count(s.num_rows, s.live_rows) * parts;
    for (const std::int64_t task : device::tasks_of_warp(ctx, tasks)) {
      const std::int64_t from = task / parts;
      const std::int64_t to = s.destinations[from];
      if (to < 0) continue;
      const std::int64_t part = task - from * parts;
      RowPart<Bytes> data;
      data.load(ctx, row_of(s.from, from), args.row_bytes, part);
      data.store(ctx, row_of(s.to, to), args.row_bytes);
      if (part != 0) continue;
      for (std::int64_t b = ctx.lane(); b < args.num_scales; b += kWarpSize)
        store_scale(s.to_scales, args.num_scales, to, b, load_scale(s.from_scales, args.num_scales, from, b));
    }
  }
};

}  // namespace shunt::cuda::detail
