#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <shunt/core/view.h>

namespace shunt::python {

/// Any array that speaks DLPack or the buffer protocol.
using InArray = nanobind::ndarray<nanobind::ro>;
using OutArray = nanobind::ndarray<>;

struct Bytes {
  const std::byte* data = nullptr;
  std::int64_t size = 0;
};
struct MutableBytes {
  std::byte* data = nullptr;
  std::int64_t size = 0;
};

/// @name An argument as the library takes it, with nothing copied
/// `what` names it in errors.
/// Errors: Errc::invalid_argument on another device than the CPU, another element type, number of dimensions or
///         columns that are not dense. An element type also matches unsigned and signed integers of its size (float32
///         does not): that is how NumPy holds the bits of bfloat16 and fp8.
/// @{
[[nodiscard]] Rows rows_of(const InArray& array, DType dtype, const char* what);
[[nodiscard]] MutableRows rows_of(const OutArray& array, DType dtype, const char* what);
[[nodiscard]] View2<const float> weights_of(const InArray& array, const char* what);
/// Expert ids are 32 or 64 bits wide, signed or not: the highest unsigned number is -1.
struct Ids {
  View2<const std::int32_t> narrow;
  View2<const std::int64_t> wide;
  bool is_wide = false;
};
[[nodiscard]] Ids ids_of(const InArray& array, const char* what);
/// Scales [rows, blocks], dense; float32, or bytes where scales are powers of two.
[[nodiscard]] const void* scales_of(const InArray& array, ScaleType type, std::int64_t rows,
                                    std::int64_t blocks, const char* what);
[[nodiscard]] void* scales_of(const OutArray& array, ScaleType type, std::int64_t rows, std::int64_t blocks,
                              const char* what);
[[nodiscard]] Bytes dense_bytes(const InArray& array, const char* what);
[[nodiscard]] MutableBytes dense_bytes(const OutArray& array, const char* what);
/// @}

/// Element type of an array that this module makes.
[[nodiscard]] nanobind::dlpack::dtype element_type(DType dtype, bool torch) noexcept;

/// Memory of the library as an array of NumPy or PyTorch, kept alive by `owner`.
struct Shown {
  const void* data = nullptr;
  std::vector<std::size_t> shape;
  nanobind::dlpack::dtype dtype;
  bool writable = false;  ///< PyTorch has no tensors that are not
};
[[nodiscard]] nanobind::object show(const Shown& what, bool torch, nanobind::handle owner);

}  // namespace shunt::python
