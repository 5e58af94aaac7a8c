#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <shunt/core/view.h>

namespace shunt::python {

/// An argument that is an array: where its elements lie and how. Valid during the call that it was given to.
/// Anything that speaks DLPack or the buffer protocol is taken; the fields of PyTorch's tensors are read one by one,
/// which costs a tenth of its DLPack.
class Given {
 public:
  enum class Use { read, write };
  static constexpr std::size_t kMaxDims = 16;
  /// `what` names it in errors.
  /// Errors: a TypeError of Python where it is no array, or one that cannot be written to and is to be.
  Given(nanobind::handle array, Use use, const char* what);

  [[nodiscard]] void* data() const noexcept { return data_; }
  [[nodiscard]] std::size_t ndim() const noexcept { return ndim_; }
  [[nodiscard]] std::int64_t shape(std::size_t i) const noexcept { return shape_[i]; }
  [[nodiscard]] std::int64_t stride(std::size_t i) const noexcept { return stride_[i]; }  ///< Elements
  [[nodiscard]] std::int64_t size() const noexcept;                                       ///< Elements
  [[nodiscard]] nanobind::dlpack::dtype dtype() const noexcept { return dtype_; }
  /// Of DLPack: 1 is the CPU, 2 CUDA.
  [[nodiscard]] int device_type() const noexcept { return device_type_; }
  [[nodiscard]] int device() const noexcept { return device_; }

 private:
  [[nodiscard]] bool read_tensor(nanobind::handle array, const char* what);
  template <class Array>
  [[nodiscard]] bool read_any(nanobind::handle array, const char* what);

  void* data_ = nullptr;
  std::size_t ndim_ = 0;
  std::array<std::int64_t, kMaxDims> shape_;
  std::array<std::int64_t, kMaxDims> stride_;
  nanobind::dlpack::dtype dtype_{};
  int device_type_ = nanobind::device::cpu::value;
  int device_ = 0;
  nanobind::ndarray<nanobind::ro> kept_;  ///< What was imported
};

/// None is no array.
[[nodiscard]] inline std::optional<Given> optional_of(nanobind::handle array, Given::Use use,
                                                      const char* what) {
  if (array.is_none()) return std::nullopt;
  return Given(array, use, what);
}

struct MutableBytes {
  std::byte* data = nullptr;
  std::int64_t size = 0;
};

/// @name An argument as the library takes it, with nothing copied
/// `what` names it in errors. `device` is the GPU where it must lie, -1 the host.
/// Errors: Errc::invalid_argument on another device, another element type, number of dimensions or
///         columns that are not dense. An element type also matches unsigned and signed integers of its size (float32
///         does not): that is how NumPy holds the bits of bfloat16 and fp8.
/// @{
[[nodiscard]] MutableRows rows_of(const Given& array, DType dtype, const char* what, int device = -1);
[[nodiscard]] View2<const float> weights_of(const Given& array, const char* what, int device = -1);
/// Expert ids are 32 or 64 bits wide, signed or not: the highest unsigned number is -1.
struct Ids {
  View2<const std::int32_t> narrow;
  View2<const std::int64_t> wide;
  bool is_wide = false;
};
[[nodiscard]] Ids ids_of(const Given& array, const char* what, int device = -1);
/// Scales [rows, blocks], dense; float32, or bytes where scales are powers of two.
[[nodiscard]] void* scales_of(const Given& array, ScaleType type, std::int64_t rows, std::int64_t blocks,
                              const char* what, int device = -1);
[[nodiscard]] MutableBytes dense_bytes(const Given& array, const char* what);
/// @}

/// Element type of an array that this module makes.
[[nodiscard]] nanobind::dlpack::dtype element_type(DType dtype, bool torch) noexcept;

/// Memory of the library as an array of NumPy or PyTorch, kept alive by `owner`.
struct Shown {
  const void* data = nullptr;
  std::vector<std::size_t> shape;
  nanobind::dlpack::dtype dtype;
  bool writable = false;  ///< PyTorch has no tensors that are not
  int device = -1;        ///< GPU; -1: host memory
};
[[nodiscard]] nanobind::object show(const Shown& what, bool torch, nanobind::handle owner);

}  // namespace shunt::python
