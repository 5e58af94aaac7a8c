#include "arrays.h"

#include <fmt/format.h>

#include <string>

#include "errors.h"

namespace nb = nanobind;

namespace shunt::python {
namespace {

using Code = nb::dlpack::dtype_code;

[[nodiscard]] bool is(nb::dlpack::dtype type, Code code, unsigned bits) noexcept {
  return type.code == static_cast<std::uint8_t>(code) && type.bits == bits && type.lanes == 1;
}

[[nodiscard]] bool is_integer(nb::dlpack::dtype type, unsigned bits) noexcept {
  return is(type, Code::UInt, bits) || is(type, Code::Int, bits);
}

[[nodiscard]] std::string type_name(nb::dlpack::dtype type) {
  const char* kind = "type";
  switch (static_cast<Code>(type.code)) {
    case Code::Int:
      kind = "int";
      break;
    case Code::UInt:
      kind = "uint";
      break;
    case Code::Float:
      kind = "float";
      break;
    case Code::Bfloat:
      kind = "bfloat";
      break;
    case Code::Complex:
      kind = "complex";
      break;
    case Code::Bool:
      kind = "bool";
      break;
    case Code::Float8_E4M3FN:
      kind = "float8_e4m3fn:";
      break;
    case Code::Float8_E5M2:
      kind = "float8_e5m2:";
      break;
    default:
      break;
  }
  return fmt::format("{}{}", kind, static_cast<unsigned>(type.bits));
}

[[nodiscard]] bool matches(nb::dlpack::dtype type, DType dtype) noexcept {
  switch (dtype) {
    case DType::f32:
      return is(type, Code::Float, 32);
    case DType::f16:
      return is(type, Code::Float, 16) || is_integer(type, 16);
    case DType::bf16:
      return is(type, Code::Bfloat, 16) || is_integer(type, 16);
    case DType::f8e4m3:
      return is(type, Code::Float8_E4M3FN, 8) || is_integer(type, 8);
    case DType::f8e5m2:
      return is(type, Code::Float8_E5M2, 8) || is_integer(type, 8);
  }
  return false;
}

template <class Array>
void check_device(const Array& array, const char* what) {
  if (array.device_type() != nb::device::cpu::value)
    refuse(fmt::format("{} is on a device of DLPack type {}; arrays in host memory (type {}) are allowed",
                       what, array.device_type(), nb::device::cpu::value));
}

/// Elements from one row to the next; a single row has none.
template <class Array>
std::int64_t check_matrix(const Array& array, const char* what) {
  check_device(array, what);
  if (array.ndim() != 2) refuse(fmt::format("{} has {} dimensions; 2 are needed", what, array.ndim()));
  // The strides of an array without elements say nothing.
  if (array.size() == 0) return static_cast<std::int64_t>(array.shape(1));
  if (array.shape(1) > 1 && array.stride(1) != 1)
    refuse(fmt::format("{} has columns {} elements apart; they must lie side by side (make it contiguous)",
                       what, array.stride(1)));
  return array.shape(0) > 1 ? array.stride(0) : static_cast<std::int64_t>(array.shape(1));
}

template <class Result, class Array>
Result to_rows(const Array& array, DType dtype, const char* what) {
  const std::int64_t stride = check_matrix(array, what);
  if (!matches(array.dtype(), dtype))
    refuse(fmt::format("{} has elements of {}; the config says {}", what, type_name(array.dtype()),
                       dtype_name(dtype)));
  return Result(array.data(), static_cast<std::int64_t>(array.shape(0)),
                static_cast<std::int64_t>(array.shape(1)), dtype, stride * dtype_bytes(dtype));
}

template <class Array>
auto* to_scales(const Array& array, ScaleType type, std::int64_t rows, std::int64_t blocks,
                const char* what) {
  if (type == ScaleType::none) refuse(fmt::format("{} was given, but the config has no scales", what));
  const bool fits = type == ScaleType::f32
                        ? is(array.dtype(), Code::Float, 32)
                        : is_integer(array.dtype(), 8) || is(array.dtype(), Code::Float8_E8M0FNU, 8);
  const std::int64_t stride = check_matrix(array, what);
  if (!fits)
    refuse(fmt::format("{} has elements of {}; the config says {}", what, type_name(array.dtype()),
                       type == ScaleType::f32 ? "float32" : "uint8 (ue8m0)"));
  const auto columns = static_cast<std::int64_t>(array.shape(1));
  if (static_cast<std::int64_t>(array.shape(0)) < rows || columns != blocks || stride != columns)
    refuse(fmt::format("{} is [{}, {}] with rows {} elements apart; it must be [{}, {}], dense", what,
                       array.shape(0), columns, stride, rows, blocks));
  return array.data();
}

template <class Result, class Array>
Result to_bytes(const Array& array, const char* what) {
  check_device(array, what);
  std::int64_t expected = 1;
  for (std::size_t i = array.size() == 0 ? 0 : array.ndim(); i-- > 0;) {
    if (array.shape(i) > 1 && array.stride(i) != expected) refuse(fmt::format("{} is not contiguous", what));
    expected *= static_cast<std::int64_t>(array.shape(i));
  }
  Result result;
  result.data = static_cast<decltype(result.data)>(array.data());
  result.size = static_cast<std::int64_t>(array.nbytes());
  return result;
}

}  // namespace

Rows rows_of(const InArray& array, DType dtype, const char* what) {
  return to_rows<Rows>(array, dtype, what);
}

MutableRows rows_of(const OutArray& array, DType dtype, const char* what) {
  return to_rows<MutableRows>(array, dtype, what);
}

View2<const float> weights_of(const InArray& array, const char* what) {
  const std::int64_t stride = check_matrix(array, what);
  if (!is(array.dtype(), Code::Float, 32))
    refuse(fmt::format("{} has elements of {}; float32 is needed", what, type_name(array.dtype())));
  return {static_cast<const float*>(array.data()), static_cast<std::int64_t>(array.shape(0)),
          static_cast<std::int64_t>(array.shape(1)), stride};
}

Ids ids_of(const InArray& array, const char* what) {
  const std::int64_t stride = check_matrix(array, what);
  const auto rows = static_cast<std::int64_t>(array.shape(0));
  const auto columns = static_cast<std::int64_t>(array.shape(1));
  Ids ids;
  if (is_integer(array.dtype(), 32)) {
    ids.narrow = {static_cast<const std::int32_t*>(array.data()), rows, columns, stride};
  } else if (is_integer(array.dtype(), 64)) {
    ids.wide = {static_cast<const std::int64_t*>(array.data()), rows, columns, stride};
    ids.is_wide = true;
  } else {
    refuse(fmt::format("{} has elements of {}; int32, int64, uint32 and uint64 are allowed", what,
                       type_name(array.dtype())));
  }
  return ids;
}

const void* scales_of(const InArray& array, ScaleType type, std::int64_t rows, std::int64_t blocks,
                      const char* what) {
  return to_scales(array, type, rows, blocks, what);
}

void* scales_of(const OutArray& array, ScaleType type, std::int64_t rows, std::int64_t blocks,
                const char* what) {
  return to_scales(array, type, rows, blocks, what);
}

Bytes dense_bytes(const InArray& array, const char* what) {
  return to_bytes<Bytes>(array, what);
}

MutableBytes dense_bytes(const OutArray& array, const char* what) {
  return to_bytes<MutableBytes>(array, what);
}

nb::dlpack::dtype element_type(DType dtype, bool torch) noexcept {
  const auto type = [](Code code, unsigned bits) {
    return nb::dlpack::dtype{static_cast<std::uint8_t>(code), static_cast<std::uint8_t>(bits), 1};
  };
  switch (dtype) {
    case DType::f32:
      return type(Code::Float, 32);
    case DType::f16:
      return type(Code::Float, 16);
    case DType::bf16:
      return torch ? type(Code::Bfloat, 16) : type(Code::UInt, 16);
    case DType::f8e4m3:
    case DType::f8e5m2:
      break;
  }
  return type(Code::UInt, 8);
}

nb::object show(const Shown& what, bool torch, nb::handle owner) {
  // An array of no elements needs an address too.
  static std::byte nothing[64] = {};
  void* const data = what.data != nullptr ? const_cast<void*>(what.data) : nothing;
  const std::size_t dimensions = what.shape.size();
  if (torch)
    return nb::cast(nb::ndarray<nb::pytorch>(data, dimensions, what.shape.data(), owner, nullptr, what.dtype,
                                             nb::device::cpu::value));
  if (what.writable)
    return nb::cast(nb::ndarray<nb::numpy>(data, dimensions, what.shape.data(), owner, nullptr, what.dtype,
                                           nb::device::cpu::value));
  return nb::cast(nb::ndarray<nb::numpy, nb::ro>(data, dimensions, what.shape.data(), owner, nullptr,
                                                 what.dtype, nb::device::cpu::value));
}

}  // namespace shunt::python
