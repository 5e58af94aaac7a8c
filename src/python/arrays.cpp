#include "arrays.h"

#include <fmt/format.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

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

/// What is looked up of PyTorch, once it has been imported. Never freed: Python may be gone when this module goes.
struct Torch {
  PyTypeObject* tensor = nullptr;
  std::vector<std::pair<PyObject*, nb::dlpack::dtype>> dtypes;
  PyObject* data_ptr = nullptr;
  PyObject* shape = nullptr;
  PyObject* stride = nullptr;
  PyObject* dtype = nullptr;
  PyObject* is_cpu = nullptr;
  PyObject* is_cuda = nullptr;
  PyObject* get_device = nullptr;
  PyObject* is_neg = nullptr;
};

[[nodiscard]] const Torch* find_torch() {
  static const Torch* found = nullptr;
  if (found != nullptr) return found;
  PyObject* const module = PyDict_GetItemString(PyImport_GetModuleDict(), "torch");
  if (module == nullptr || !PyObject_HasAttrString(module, "Tensor")) return nullptr;
  const nb::handle torch(module);
  auto made = std::make_unique<Torch>();
  made->tensor = reinterpret_cast<PyTypeObject*>(nb::object(torch.attr("Tensor")).release().ptr());
  const auto add = [&](const char* name, Code code, int bits) {
    if (!nb::hasattr(torch, name)) return;
    made->dtypes.emplace_back(
        nb::object(torch.attr(name)).release().ptr(),
        nb::dlpack::dtype{static_cast<std::uint8_t>(code), static_cast<std::uint8_t>(bits), 1});
  };
  add("bfloat16", Code::Bfloat, 16);
  add("float32", Code::Float, 32);
  add("int32", Code::Int, 32);
  add("int64", Code::Int, 64);
  add("float16", Code::Float, 16);
  add("float64", Code::Float, 64);
  add("uint8", Code::UInt, 8);
  add("int8", Code::Int, 8);
  add("int16", Code::Int, 16);
  add("uint16", Code::UInt, 16);
  add("uint32", Code::UInt, 32);
  add("uint64", Code::UInt, 64);
  add("float8_e4m3fn", Code::Float8_E4M3FN, 8);
  add("float8_e5m2", Code::Float8_E5M2, 8);
  add("float8_e8m0fnu", Code::Float8_E8M0FNU, 8);
  const std::initializer_list<std::pair<PyObject**, const char*>> names = {
      {&made->data_ptr, "data_ptr"},     {&made->shape, "shape"},   {&made->stride, "stride"},
      {&made->dtype, "dtype"},           {&made->is_cpu, "is_cpu"}, {&made->is_cuda, "is_cuda"},
      {&made->get_device, "get_device"}, {&made->is_neg, "is_neg"}};
  for (const auto& [where, name] : names) *where = PyUnicode_InternFromString(name);
  found = made.release();
  return found;
}

/// Throws what Python has raised.
[[nodiscard]] nb::object checked(PyObject* result) {
  if (result == nullptr) nb::raise_python_error();
  return nb::steal(result);
}

/// The integers of a tuple.
void copy_to(const nb::object& tuple, std::array<std::int64_t, Given::kMaxDims>& to, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i)
    to[i] = PyLong_AsLongLong(PyTuple_GET_ITEM(tuple.ptr(), static_cast<Py_ssize_t>(i)));
}

void check_device(const Given& array, const char* what, int device) {
  const bool on_gpu = array.device_type() == nb::device::cuda::value;
  if (device >= 0 && (!on_gpu || array.device() != device))
    refuse(fmt::format("{} is {}; tensors on cuda:{} are needed, where this world's memory is", what,
                       on_gpu ? fmt::format("on cuda:{}", array.device())
                              : fmt::format("on a device of DLPack type {}", array.device_type()),
                       device));
  if (device < 0 && array.device_type() != nb::device::cpu::value)
    refuse(
        fmt::format("{} is on a device of DLPack type {}; arrays in host memory (type {}) are allowed, "
                    "as this world's memory is the host's",
                    what, array.device_type(), nb::device::cpu::value));
}

/// Elements from one row to the next; a single row has none.
std::int64_t check_matrix(const Given& array, const char* what, int device) {
  check_device(array, what, device);
  if (array.ndim() != 2) refuse(fmt::format("{} has {} dimensions; 2 are needed", what, array.ndim()));
  // The strides of an array without elements say nothing.
  if (array.size() == 0) return array.shape(1);
  if (array.shape(1) > 1 && array.stride(1) != 1)
    refuse(fmt::format("{} has columns {} elements apart; they must lie side by side (make it contiguous)",
                       what, array.stride(1)));
  return array.shape(0) > 1 ? array.stride(0) : array.shape(1);
}

}  // namespace

Given::Given(nb::handle array, Use use, const char* what) {
  if (read_tensor(array, what)) return;
  if (use == Use::write ? read_any<nb::ndarray<>>(array, what) : read_any<nb::ndarray<nb::ro>>(array, what))
    return;
  const bool readable = use == Use::write && nb::isinstance<nb::ndarray<nb::ro>>(array);
  throw nb::type_error(fmt::format("{} is {} {}; {} is needed", what, readable ? "a read-only" : "a",
                                   nb::cast<std::string>(nb::handle(array.type()).attr("__name__")),
                                   readable ? "one that can be written to"
                                            : "an array that speaks DLPack or the buffer protocol")
                           .c_str());
}

/// False for what is no tensor, or one that only PyTorch's own DLPack can describe.
bool Given::read_tensor(nb::handle array, const char* what) {
  const Torch* const torch = find_torch();
  if (torch == nullptr || PyObject_TypeCheck(array.ptr(), torch->tensor) == 0) return false;
  const auto get = [&](PyObject* name) { return checked(PyObject_GetAttr(array.ptr(), name)); };
  const auto call = [&](PyObject* name) { return checked(PyObject_CallMethodNoArgs(array.ptr(), name)); };
  const nb::object type = get(torch->dtype);
  const auto known = std::find_if(torch->dtypes.begin(), torch->dtypes.end(),
                                  [&](const auto& one) { return one.first == type.ptr(); });
  const bool on_cpu = get(torch->is_cpu).ptr() == Py_True;
  // Memory that shows another tensor with its signs turned: PyTorch's own DLPack would not say so.
  if (call(torch->is_neg).ptr() == Py_True)
    refuse(fmt::format("{} is a tensor with the negative bit set; resolve_neg() makes a plain one", what));
  if (known == torch->dtypes.end() || (!on_cpu && get(torch->is_cuda).ptr() != Py_True)) return false;
  const nb::object shape = get(torch->shape);
  const nb::object stride = call(torch->stride);
  const auto dims = static_cast<std::size_t>(PyTuple_GET_SIZE(shape.ptr()));
  if (dims > kMaxDims) return false;
  ndim_ = dims;
  copy_to(shape, shape_, dims);
  copy_to(stride, stride_, dims);
  data_ = PyLong_AsVoidPtr(call(torch->data_ptr).ptr());
  dtype_ = known->second;
  if (on_cpu) return true;
  device_type_ = nb::device::cuda::value;
  device_ = static_cast<int>(PyLong_AsLong(call(torch->get_device).ptr()));
  return true;
}

template <class Array>
bool Given::read_any(nb::handle array, const char* what) {
  Array found;
  if (!nb::try_cast(array, found)) return false;
  if (found.ndim() > kMaxDims)
    refuse(fmt::format("{} has {} dimensions; at most {} are allowed", what, found.ndim(), kMaxDims));
  ndim_ = found.ndim();
  for (std::size_t i = 0; i < ndim_; ++i) {
    shape_[i] = static_cast<std::int64_t>(found.shape(i));
    stride_[i] = found.stride(i);
  }
  data_ = const_cast<void*>(static_cast<const void*>(found.data()));
  dtype_ = found.dtype();
  device_type_ = found.device_type();
  device_ = found.device_id();
  kept_ = nb::ndarray<nb::ro>(std::move(found));
  return true;
}

std::int64_t Given::size() const noexcept {
  std::int64_t product = 1;
  for (std::size_t i = 0; i < ndim_; ++i) product *= shape_[i];
  return product;
}

MutableRows rows_of(const Given& array, DType dtype, const char* what, int device) {
  const std::int64_t stride = check_matrix(array, what, device);
  if (!matches(array.dtype(), dtype))
    refuse(fmt::format("{} has elements of {}; the config says {}", what, type_name(array.dtype()),
                       dtype_name(dtype)));
  return {array.data(), array.shape(0), array.shape(1), dtype, stride * dtype_bytes(dtype)};
}

void* scales_of(const Given& array, ScaleType type, std::int64_t rows, std::int64_t blocks, const char* what,
                int device) {
  if (type == ScaleType::none) refuse(fmt::format("{} was given, but the config has no scales", what));
  const bool fits = type == ScaleType::f32
                        ? is(array.dtype(), Code::Float, 32)
                        : is_integer(array.dtype(), 8) || is(array.dtype(), Code::Float8_E8M0FNU, 8);
  const std::int64_t stride = check_matrix(array, what, device);
  if (!fits)
    refuse(fmt::format("{} has elements of {}; the config says {}", what, type_name(array.dtype()),
                       type == ScaleType::f32 ? "float32" : "uint8 (ue8m0)"));
  const std::int64_t columns = array.shape(1);
  if (array.shape(0) < rows || columns != blocks || stride != columns)
    refuse(fmt::format("{} is [{}, {}] with rows {} elements apart; it must be [{}, {}], dense", what,
                       array.shape(0), columns, stride, rows, blocks));
  return array.data();
}

MutableBytes dense_bytes(const Given& array, const char* what) {
  check_device(array, what, -1);
  std::int64_t expected = 1;
  for (std::size_t i = array.size() == 0 ? 0 : array.ndim(); i-- > 0;) {
    if (array.shape(i) > 1 && array.stride(i) != expected) refuse(fmt::format("{} is not contiguous", what));
    expected *= array.shape(i);
  }
  return {static_cast<std::byte*>(array.data()), array.size() * array.dtype().bits / 8};
}

View2<const float> weights_of(const Given& array, const char* what, int device) {
  const std::int64_t stride = check_matrix(array, what, device);
  if (!is(array.dtype(), Code::Float, 32))
    refuse(fmt::format("{} has elements of {}; float32 is needed", what, type_name(array.dtype())));
  return {static_cast<const float*>(array.data()), array.shape(0), array.shape(1), stride};
}

Ids ids_of(const Given& array, const char* what, int device) {
  const std::int64_t stride = check_matrix(array, what, device);
  const auto rows = array.shape(0);
  const std::int64_t columns = array.shape(1);
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
  void* const data = what.data != nullptr || what.device >= 0 ? const_cast<void*>(what.data) : nothing;
  const std::size_t dimensions = what.shape.size();
  if (torch) {
    const int where = what.device < 0 ? nb::device::cpu::value : nb::device::cuda::value;
    return nb::cast(nb::ndarray<nb::pytorch>(data, dimensions, what.shape.data(), owner, nullptr, what.dtype,
                                             where, std::max(what.device, 0)));
  }
  if (what.writable)
    return nb::cast(nb::ndarray<nb::numpy>(data, dimensions, what.shape.data(), owner, nullptr, what.dtype,
                                           nb::device::cpu::value));
  return nb::cast(nb::ndarray<nb::numpy, nb::ro>(data, dimensions, what.shape.data(), owner, nullptr,
                                                 what.dtype, nb::device::cpu::value));
}

}  // namespace shunt::python
