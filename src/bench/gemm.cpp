#include <shunt/bench/gemm.h>

#include <algorithm>

#include <fmt/format.h>

namespace shunt::bench {

std::string gemm_name(const GemmShape& shape) {
  return fmt::format("{} x {} x {}, {}", shape.m, shape.n, shape.k, dtype_name(shape.dtype));
}

float gemm_element(GemmInput matrix, std::int64_t index) noexcept {
  std::uint64_t bits = static_cast<std::uint64_t>(index) * 2 + (matrix == GemmInput::b ? 1 : 0);
  bits = (bits ^ (bits >> 31)) * 0x9e3779b97f4a7c15ULL;
  bits = (bits ^ (bits >> 29)) * 0xbf58476d1ce4e5b9ULL;
  return static_cast<float>(static_cast<std::int32_t>(bits >> 60) - 8) / 8.0F;
}

double gemm_result(const GemmShape& shape, std::int64_t row, std::int64_t column) noexcept {
  double sum = 0;
  for (std::int64_t i = 0; i < shape.k; ++i)
    sum += static_cast<double>(gemm_element(GemmInput::a, row * shape.k + i)) *
           static_cast<double>(gemm_element(GemmInput::b, i * shape.n + column));
  return sum;
}

std::string check_gemm(const GemmShape& shape, const std::function<float(std::int64_t, std::int64_t)>& read) {
  // Steps that share no factor with the usual sizes walk over all tiles of a blocked product.
  constexpr std::int64_t kSamples = 64;
  const std::int64_t elements = shape.m * shape.n;
  for (std::int64_t i = 0; i < kSamples + 1; ++i) {
    const std::int64_t at = i == kSamples ? elements - 1 : i * 1'000'003 % elements;
    const std::int64_t row = at / shape.n;
    const std::int64_t column = at % shape.n;
    const double expected = gemm_result(shape, row, column);
    const auto got = static_cast<double>(read(row, column));
    if (!(got == expected))
      return fmt::format("the matrix product {} has {} in row {}, column {}, where {} is right",
                         gemm_name(shape), got, row, column, expected);
  }
  return {};
}

}  // namespace shunt::bench
