#pragma once

#include <nanobind/nanobind.h>

namespace shunt::python {

void bind_all_to_all(nanobind::module_& module);

}  // namespace shunt::python
