#include <shunt/layer/matmul.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <string>
#include <vector>

#include <fmt/format.h>

#include <shunt/core/error.h>
#include <shunt/core/nearest.h>

#include "matmul_onednn.h"
#include "multiversion.h"

namespace shunt {
namespace {

constexpr std::int64_t kRows = 4;      ///< Of C that are summed together
constexpr std::int64_t kColumns = 16;  ///< Of C in one go
constexpr std::int64_t kDepth = 256;   ///< Of k whose part of B stays in a cache
constexpr std::int64_t kWidth = 256;   ///< Of n, the same
constexpr std::int64_t kHeight = 64;   ///< Rows of C that are held in float32

/// to [rows, step] = a part of a stored matrix, in float32; `turned`: its transpose.
void copy_part(const void* data, DType dtype, std::int64_t stride, bool turned, std::int64_t first_row,
               std::int64_t first_col, std::int64_t rows, std::int64_t cols, float* to, std::int64_t step) {
  const auto copy = [&](const auto* from, const auto& read) {
    if (!turned) {
      for (std::int64_t i = 0; i < rows; ++i)
        for (std::int64_t j = 0; j < cols; ++j)
          to[i * step + j] = read(from[(first_row + i) * stride + first_col + j]);
      return;
    }
    for (std::int64_t j = 0; j < cols; ++j)
      for (std::int64_t i = 0; i < rows; ++i)
        to[i * step + j] = read(from[(first_col + j) * stride + first_row + i]);
  };
  if (dtype == DType::f32)
    copy(static_cast<const float*>(data), [](float value) { return value; });
  else
    copy(static_cast<const std::uint16_t*>(data),
         [](std::uint16_t value) { return std::bit_cast<float>(static_cast<std::uint32_t>(value) << 16); });
}

/// Arrays would not stay in registers.
using Lanes [[gnu::vector_size(64)]] = float;

/// c [4, 16 * tiles] += a [4, depth] b [depth, width]: every element is a sum in the order of k.
SHUNT_MULTIVERSION void add_product(const float* a, const float* b, std::int64_t depth, float* c,
                                    std::int64_t tiles) {
  for (std::int64_t tile = 0; tile < tiles; ++tile) {
    float* const to = c + tile * kColumns;
    Lanes sum0, sum1, sum2, sum3;
    std::memcpy(&sum0, to, sizeof(Lanes));
    std::memcpy(&sum1, to + kWidth, sizeof(Lanes));
    std::memcpy(&sum2, to + 2 * kWidth, sizeof(Lanes));
    std::memcpy(&sum3, to + 3 * kWidth, sizeof(Lanes));
    const float* row = b + tile * kColumns;
    for (std::int64_t i = 0; i < depth; ++i, row += kWidth) {
      Lanes by;
      std::memcpy(&by, row, sizeof(Lanes));
      sum0 += a[i] * by;
      sum1 += a[kDepth + i] * by;
      sum2 += a[2 * kDepth + i] * by;
      sum3 += a[3 * kDepth + i] * by;
    }
    std::memcpy(to, &sum0, sizeof(Lanes));
    std::memcpy(to + kWidth, &sum1, sizeof(Lanes));
    std::memcpy(to + 2 * kWidth, &sum2, sizeof(Lanes));
    std::memcpy(to + 3 * kWidth, &sum3, sizeof(Lanes));
  }
}

struct Scratch {
  std::vector<float> a = std::vector<float>(static_cast<std::size_t>(kHeight * kDepth));
  std::vector<float> b = std::vector<float>(static_cast<std::size_t>(kDepth * kWidth));
  std::vector<float> c = std::vector<float>(static_cast<std::size_t>(kHeight * kWidth));
};

/// Rows [i0, i0 + rows) and columns [j0, j0 + columns) of C.
void multiply_block(const MatmulCall& call, std::int64_t i0, std::int64_t rows, std::int64_t j0,
                    std::int64_t columns, Scratch& scratch) {
  float* const a = scratch.a.data();
  float* const b = scratch.b.data();
  float* const c = scratch.c.data();
  const std::int64_t tiles = (columns + kColumns - 1) / kColumns;
  const std::int64_t full_rows = (rows + kRows - 1) / kRows * kRows;
  for (std::int64_t i = 0; i < full_rows; ++i) {
    float* const row = c + i * kWidth;
    std::fill(row, row + tiles * kColumns, 0.0F);
    if (i >= rows) continue;
    if (call.bias != nullptr) std::copy_n(call.bias + j0, columns, row);
    if (call.accumulate)
      std::copy_n(static_cast<const float*>(call.c) + (i0 + i) * call.c_stride + j0, columns, row);
  }
  for (std::int64_t k0 = 0; k0 < call.k; k0 += kDepth) {
    const std::int64_t depth = std::min(kDepth, call.k - k0);
    copy_part(call.a, call.in, call.a_stride, call.a_transposed, i0, k0, rows, depth, a, kDepth);
    for (std::int64_t i = rows; i < full_rows; ++i) std::fill(a + i * kDepth, a + i * kDepth + depth, 0.0F);
    copy_part(call.b, call.in, call.b_stride, call.b_transposed, k0, j0, depth, columns, b, kWidth);
    for (std::int64_t k = 0; k < depth; ++k)
      std::fill(b + k * kWidth + columns, b + k * kWidth + tiles * kColumns, 0.0F);
    for (std::int64_t i = 0; i < rows; i += kRows)
      add_product(a + i * kDepth, b, depth, c + i * kWidth, tiles);
  }
  for (std::int64_t i = 0; i < rows; ++i) {
    const std::int64_t to = (i0 + i) * call.c_stride + j0;
    if (call.out == DType::f32)
      std::copy_n(c + i * kWidth, columns, static_cast<float*>(call.c) + to);
    else
      for (std::int64_t j = 0; j < columns; ++j) store_element(call.out, call.c, to + j, c[i * kWidth + j]);
  }
}

void own_matmul(const MatmulCall& call) {
  thread_local Scratch scratch;
  for (std::int64_t j = 0; j < call.n; j += kWidth)
    for (std::int64_t i = 0; i < call.m; i += kHeight)
      multiply_block(call, i, std::min(kHeight, call.m - i), j, std::min(kWidth, call.n - j), scratch);
}

void check(const MatmulCall& call) {
  const auto refuse = [&call](const std::string& why) {
    throw Error(Errc::invalid_argument,
                fmt::format("matrix product {} x {} x {}: {}", call.m, call.n, call.k, why));
  };
  if (call.m < 0 || call.n < 0 || call.k < 0) refuse("sizes must be at least 0");
  if (call.in != DType::f32 && call.in != DType::bf16)
    refuse(fmt::format("of {}; allowed are float32 and bfloat16", dtype_name(call.in)));
  if (call.out != DType::f32 && (call.out != DType::bf16 || call.in != DType::bf16 || call.accumulate))
    refuse(fmt::format("to {}; allowed are float32, and bfloat16 of bfloat16 without accumulation",
                       dtype_name(call.out)));
  if (call.bias != nullptr && call.accumulate) refuse("a bias and accumulation exclude each other");
  const auto wide = [](std::int64_t rows, std::int64_t columns, std::int64_t stride, bool transposed) {
    return stride >= (transposed ? rows : columns);
  };
  if (!wide(call.m, call.k, call.a_stride, call.a_transposed) ||
      !wide(call.k, call.n, call.b_stride, call.b_transposed) || call.c_stride < call.n)
    refuse("a stride is smaller than a row");
}

}  // namespace

MatmulBackend parse_matmul_backend(std::string_view name) {
  const std::vector<std::string> known = {"automatic", "onednn", "own"};
  for (std::size_t i = 0; i < known.size(); ++i)
    if (name == known[i]) return static_cast<MatmulBackend>(i);
  throw Error(Errc::invalid_argument,
              fmt::format("matrix products by \"{}\" are not known; did you mean {}? Known are {}", name,
                          nearest_name(std::string(name), known), fmt::join(known, ", ")));
}

std::string matmul_name(MatmulBackend backend) {
  return backend == MatmulBackend::own || !onednn_missing().empty() ? "own" : onednn_name();
}

void matmul(const MatmulCall& call, MatmulBackend backend) {
  check(call);
  if (call.m == 0 || call.n == 0) return;
  // oneDNN has no empty sums.
  if (backend != MatmulBackend::own && call.k > 0 && detail::onednn_matmul(call)) return;
  if (backend == MatmulBackend::onednn && call.k > 0)
    throw Error(
        Errc::unavailable,
        fmt::format("oneDNN cannot compute the product {} x {} x {} in {} here{}{}", call.m, call.n, call.k,
                    dtype_name(call.in), onednn_missing().empty() ? "" : ": ", onednn_missing()));
  own_matmul(call);
}

}  // namespace shunt
