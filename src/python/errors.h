#pragma once

#include <string>

#include <shunt/core/error.h>

namespace shunt::python {

/// Lets shunt::Error arrive in Python as the class of shunt._errors that its code names, with the same text.
void translate_errors();

/// The code that errc_name() calls so; Errc::internal where none is.
[[nodiscard]] Errc code_of(const std::string& name) noexcept;

/// Throws Errc::invalid_argument with the words of a binding.
[[noreturn]] void refuse(const std::string& what);

}  // namespace shunt::python
