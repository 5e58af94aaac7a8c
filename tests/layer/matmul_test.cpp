#include <shunt/layer/matmul.h>

#include <cmath>
#include <vector>

#include <gtest/gtest.h>

#include <shunt/core/error.h>
#include <shunt/core/random.h>

#include "activations.h"

namespace shunt {
namespace {

std::size_t at(std::int64_t i) {
  return static_cast<std::size_t>(i);
}

struct Matrix {
  Matrix(std::int64_t rows, std::int64_t cols, DType dtype_in, std::uint64_t seed)
      : stride(cols + 3), dtype(dtype_in), bytes(at(rows * stride * dtype_bytes(dtype))) {
    Random random(seed);
    for (std::int64_t i = 0; i < rows * stride; ++i)
      store_element(dtype, bytes.data(), i, static_cast<float>(random.normal()));
  }
  [[nodiscard]] double get(std::int64_t row, std::int64_t col) const {
    return static_cast<double>(load_element(dtype, bytes.data(), row * stride + col));
  }
  std::int64_t stride;
  DType dtype;
  std::vector<std::byte> bytes;
};

struct Shape {
  std::int64_t m, n, k;
};

void expect_product(const Shape& shape, DType in, DType out, int flags, MatmulBackend backend) {
  const bool a_turned = (flags & 1) != 0, b_turned = (flags & 2) != 0, adds = (flags & 4) != 0;
  const bool biased = !adds && (flags & 8) != 0;
  const Matrix a(a_turned ? shape.k : shape.m, a_turned ? shape.m : shape.k, in, 1);
  const Matrix b(b_turned ? shape.n : shape.k, b_turned ? shape.k : shape.n, in, 2);
  Matrix c(shape.m, shape.n, out, 3);
  const Matrix before = c;
  std::vector<float> bias(at(shape.n));
  for (std::int64_t j = 0; j < shape.n; ++j) bias[at(j)] = static_cast<float>(j % 7) - 3;
  matmul({.m = shape.m,
          .n = shape.n,
          .k = shape.k,
          .in = in,
          .out = out,
          .a = a.bytes.data(),
          .a_stride = a.stride,
          .a_transposed = a_turned,
          .b = b.bytes.data(),
          .b_stride = b.stride,
          .b_transposed = b_turned,
          .c = c.bytes.data(),
          .c_stride = c.stride,
          .bias = biased ? bias.data() : nullptr,
          .accumulate = adds},
         backend);
  for (std::int64_t i = 0; i < shape.m; ++i) {
    for (std::int64_t j = 0; j < shape.n; ++j) {
      double sum = adds ? before.get(i, j) : biased ? static_cast<double>(bias[at(j)]) : 0;
      double size = std::abs(sum);
      for (std::int64_t k = 0; k < shape.k; ++k) {
        const double product =
            (a_turned ? a.get(k, i) : a.get(i, k)) * (b_turned ? b.get(j, k) : b.get(k, j));
        sum += product;
        size += std::abs(product);
      }
      const double bound = 1e-6 * size + (out == DType::bf16 ? std::abs(sum) / 256 : 0) + 1e-6;
      ASSERT_NEAR(c.get(i, j), sum, bound) << shape.m << " x " << shape.n << " x " << shape.k << ", flags "
                                           << flags << ", row " << i << ", column " << j;
    }
    for (std::int64_t j = shape.n; j < c.stride; ++j) ASSERT_EQ(c.get(i, j), before.get(i, j));
  }
}

TEST(MatmulTest, MultipliesInEveryForm) {
  for (const MatmulBackend backend : {MatmulBackend::automatic, MatmulBackend::own})
    for (const Shape shape : {Shape{1, 1, 1}, {5, 17, 3}, {66, 40, 300}, {32, 270, 64}, {3, 2, 0}})
      for (int flags = 0; flags < 16; ++flags) {
        expect_product(shape, DType::f32, DType::f32, flags, backend);
        expect_product(shape, DType::bf16, DType::f32, flags, backend);
        if ((flags & 4) == 0) expect_product(shape, DType::bf16, DType::bf16, flags, backend);
      }
}

TEST(MatmulTest, OwnRowsDoNotDependOnTheirNumber) {
  const Shape shape{70, 33, 300};
  const Matrix a(shape.m, shape.k, DType::f32, 1), b(shape.k, shape.n, DType::f32, 2);
  Matrix all(shape.m, shape.n, DType::f32, 3), one(1, shape.n, DType::f32, 3);
  MatmulCall call{.m = shape.m,
                  .n = shape.n,
                  .k = shape.k,
                  .a = a.bytes.data(),
                  .a_stride = a.stride,
                  .b = b.bytes.data(),
                  .b_stride = b.stride,
                  .c = all.bytes.data(),
                  .c_stride = all.stride};
  matmul(call, MatmulBackend::own);
  for (std::int64_t row = 0; row < shape.m; ++row) {
    call.m = 1;
    call.a = a.bytes.data() + row * a.stride * 4;
    call.c = one.bytes.data();
    matmul(call, MatmulBackend::own);
    for (std::int64_t j = 0; j < shape.n; ++j) ASSERT_EQ(one.get(0, j), all.get(row, j)) << "row " << row;
  }
}

TEST(MatmulTest, RefusesWhatItCannotDo) {
  float x = 0;
  MatmulCall call{
      .m = 1, .n = 1, .k = 1, .a = &x, .a_stride = 1, .b = &x, .b_stride = 1, .c = &x, .c_stride = 1};
  call.in = DType::f16;
  EXPECT_THROW(matmul(call), Error);
  call.in = DType::f32;
  call.out = DType::bf16;
  EXPECT_THROW(matmul(call), Error);
  call.out = DType::f32;
  call.m = -1;
  EXPECT_THROW(matmul(call), Error);
  EXPECT_THROW((void)parse_matmul_backend("mkl"), Error);
}

/// From -100 to 100 in uneven steps, and the specials.
std::vector<float> samples() {
  std::vector<float> x;
  for (int i = -1000; i <= 1000; ++i)
    x.push_back(static_cast<float>(i) * static_cast<float>(i < 0 ? -i : i) * 1e-4F);
  return x;
}

double gelu(double x) {
  return x * 0.5 * std::erfc(-x / std::sqrt(2.0));
}

TEST(ActivationTest, EqualsDoublePrecision) {
  const std::vector<float> x = samples();
  const auto n = static_cast<std::int64_t>(x.size());
  std::vector<float> after(x.size());
  const auto silu = [](double v) { return v / (1 + std::exp(-v)); };
  detail::activate(Activation::gelu, DType::f32, x.data(), n, after.data());
  for (std::size_t i = 0; i < x.size(); ++i) {
    const auto v = static_cast<double>(x[i]);
    ASSERT_NEAR(static_cast<double>(after[i]), gelu(v), 3e-7 * std::max(1.0, std::abs(v))) << v;
  }
  detail::activate(Activation::silu, DType::f32, x.data(), n, after.data());
  for (std::size_t i = 0; i < x.size(); ++i) {
    const auto v = static_cast<double>(x[i]);
    ASSERT_NEAR(static_cast<double>(after[i]), silu(v), 4e-7 * std::max(1.0, std::abs(v))) << v;
  }
}

TEST(ActivationTest, NotANumberStays) {
  const float nan = std::nanf("");
  for (const Activation kind : {Activation::gelu, Activation::silu}) {
    float after = 0;
    detail::activate(kind, DType::f32, &nan, 1, &after);
    EXPECT_TRUE(std::isnan(after)) << activation_name(kind);
  }
}

}  // namespace
}  // namespace shunt
