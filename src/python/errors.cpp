#include "errors.h"

#include <exception>

#include <nanobind/nanobind.h>

#include <shunt/core/error.h>

namespace nb = nanobind;

namespace shunt::python {
namespace {

void to_python(const std::exception_ptr& thrown, void* /*payload*/) {
  try {
    std::rethrow_exception(thrown);
  } catch (const Error& error) {
    try {
      const nb::object made = nb::module_::import_("shunt._errors")
                                  .attr("make_error")(errc_name(error.code()), error.what(), error.peer());
      PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(made.ptr())), made.ptr());
    } catch (nb::python_error& other) {
      other.restore();  // Such as no memory for the exception
    }
  }
}

}  // namespace

void translate_errors() {
  nb::register_exception_translator(to_python);
}

Errc code_of(const std::string& name) noexcept {
  for (int code = 0; code <= static_cast<int>(Errc::internal); ++code)
    if (name == errc_name(static_cast<Errc>(code))) return static_cast<Errc>(code);
  return Errc::internal;
}

void refuse(const std::string& what) {
  throw Error(Errc::invalid_argument, what);
}

}  // namespace shunt::python
