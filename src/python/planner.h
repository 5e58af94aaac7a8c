#pragma once

#include <nanobind/nanobind.h>

namespace shunt::python {

void bind_planner(nanobind::module_& module);

}  // namespace shunt::python
