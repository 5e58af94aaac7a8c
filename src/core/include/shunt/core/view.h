#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include <shunt/core/dtype.h>

namespace shunt {

/// Borrowed one-dimensional array.
template <class T>
using View1 = std::span<T>;

/// Borrowed matrix [rows, cols] of T; row r starts at data + r * row_stride (in elements), columns are dense.
template <class T>
struct View2 {
  T* data = nullptr;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::int64_t row_stride = 0;

  constexpr View2() = default;
  constexpr View2(T* data_in, std::int64_t rows_in, std::int64_t cols_in)
      : View2(data_in, rows_in, cols_in, cols_in) {}
  constexpr View2(T* data_in, std::int64_t rows_in, std::int64_t cols_in, std::int64_t stride)
      : data(data_in), rows(rows_in), cols(cols_in), row_stride(stride) {}

  [[nodiscard]] constexpr T* row(std::int64_t r) const noexcept { return data + r * row_stride; }
  [[nodiscard]] constexpr T& operator()(std::int64_t r, std::int64_t c) const noexcept { return row(r)[c]; }
  constexpr operator View2<const T>() const noexcept { return {data, rows, cols, row_stride}; }
};

namespace detail {
template <class Byte, class Void>
struct BasicRows {
  Byte* data = nullptr;
  std::int64_t rows = 0;    ///< T
  std::int64_t hidden = 0;  ///< H, elements per row
  DType dtype = DType::bf16;
  std::int64_t row_stride_bytes = 0;

  constexpr BasicRows() = default;
  /// Dense rows.
  BasicRows(Void* data_in, std::int64_t rows_in, std::int64_t hidden_in, DType dtype_in)
      : BasicRows(data_in, rows_in, hidden_in, dtype_in, hidden_in * dtype_bytes(dtype_in)) {}
  BasicRows(Void* data_in, std::int64_t rows_in, std::int64_t hidden_in, DType dtype_in,
            std::int64_t stride_bytes)
      : data(static_cast<Byte*>(data_in)),
        rows(rows_in),
        hidden(hidden_in),
        dtype(dtype_in),
        row_stride_bytes(stride_bytes) {}

  [[nodiscard]] Byte* row(std::int64_t r) const noexcept { return data + r * row_stride_bytes; }
  [[nodiscard]] std::int64_t row_bytes() const noexcept { return hidden * dtype_bytes(dtype); }
};
}  // namespace detail

/// Borrowed rows [T, H] of a run-time dtype; each row is dense, rows may be apart (row_stride_bytes).
using Rows = detail::BasicRows<const std::byte, const void>;
/// The same, writable.
struct MutableRows : detail::BasicRows<std::byte, void> {
  using BasicRows::BasicRows;
  operator Rows() const noexcept { return {data, rows, hidden, dtype, row_stride_bytes}; }
};

}  // namespace shunt
