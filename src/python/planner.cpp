#include "planner.h"

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <string>
#include <vector>

#include <shunt/cli/answer.h>
#include <shunt/cluster/preset_folder.h>

namespace nb = nanobind;

namespace shunt::python {
namespace {

[[nodiscard]] std::string planner(const std::vector<std::string>& arguments) {
  const nb::gil_scoped_release release;
  return cli::answer(arguments).text;
}

}  // namespace

void bind_planner(nb::module_& module) {
  module.def("planner", &planner, nb::arg("arguments"));
  module.def("set_preset_folder", &set_preset_folder, nb::arg("folder"));
}

}  // namespace shunt::python
