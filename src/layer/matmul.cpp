#include <shunt/layer/matmul.h>

#include <algorithm>
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

float element(const void* data, DType dtype, std::int64_t index) {
  return dtype == DType::f32 ? static_cast<const float*>(data)[index]
                             : bf16_to_f32(static_cast<const std::uint16_t*>(data)[index]);
}

/// c [4, 16 * tiles] += a [4, depth] b [depth, width]: every element is a sum in the order of k.
SHUNT_MULTIVERSION void add_product(const float* a, const float* b, std::int64_t depth, float* c,
                                    std::int64_t tiles) {
  for (std::int64_t tile = 0; tile < tiles; ++tile) {
    float sum0[kColumns], sum1[kColumns], sum2[kColumns], sum3[kColumns];
    float* const to = c + tile * kColumns;
    for (std::int64_t j = 0; j < kColumns; ++j) {
      sum0[j] = to[j];
      sum1[j] = to[kWidth + j];
      sum2[j] = to[2 * kWidth + j];
      sum3[j] = to[3 * kWidth + j];
    }
    const float* row = b + tile * kColumns;
    for (std::int64_t i = 0; i < depth; ++i, row += kWidth) {
      const float a0 = a[i], a1 = a[kDepth + i], a2 = a[2 * kDepth + i], a3 = a[3 * kDepth + i];
      for (std::int64_t j = 0; j < kColumns; ++j) {
        sum0[j] += a0 * row[j];
        sum1[j] += a1 * row[j];
        sum2[j] += a2 * row[j];
        sum3[j] += a3 * row[j];
      }
    }
    for (std::int64_t j = 0; j < kColumns; ++j) {
      to[j] = sum0[j];
      to[kWidth + j] = sum1[j];
      to[2 * kWidth + j] = sum2[j];
      to[3 * kWidth + j] = sum3[j];
    }
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
  float* const c = scratch.c.data();
  std::fill(scratch.c.begin(), scratch.c.end(), 0.0F);
  for (std::int64_t i = 0; i < rows; ++i)
    for (std::int64_t j = 0; j < columns; ++j) {
      if (call.bias != nullptr) c[i * kWidth + j] = call.bias[j0 + j];
      if (call.accumulate)
        c[i * kWidth + j] = static_cast<const float*>(call.c)[(i0 + i) * call.c_stride + j0 + j];
    }
  for (std::int64_t k0 = 0; k0 < call.k; k0 += kDepth) {
    const std::int64_t depth = std::min(kDepth, call.k - k0);
    std::fill(scratch.a.begin(), scratch.a.end(), 0.0F);
    for (std::int64_t i = 0; i < rows; ++i)
      for (std::int64_t k = 0; k < depth; ++k)
        scratch.a[static_cast<std::size_t>(i * kDepth + k)] = element(
            call.a, call.in,
            call.a_transposed ? (k0 + k) * call.a_stride + i0 + i : (i0 + i) * call.a_stride + k0 + k);
    std::fill(scratch.b.begin(), scratch.b.end(), 0.0F);
    for (std::int64_t k = 0; k < depth; ++k)
      for (std::int64_t j = 0; j < columns; ++j)
        scratch.b[static_cast<std::size_t>(k * kWidth + j)] = element(
            call.b, call.in,
            call.b_transposed ? (j0 + j) * call.b_stride + k0 + k : (k0 + k) * call.b_stride + j0 + j);
    const std::int64_t tiles = (columns + kColumns - 1) / kColumns;
    for (std::int64_t i = 0; i < rows; i += kRows)
      add_product(scratch.a.data() + i * kDepth, scratch.b.data(), depth, c + i * kWidth, tiles);
  }
  for (std::int64_t i = 0; i < rows; ++i)
    for (std::int64_t j = 0; j < columns; ++j)
      store_element(call.out, call.c, (i0 + i) * call.c_stride + j0 + j, c[i * kWidth + j]);
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
