// The extension module shunt._core: thin, typed by _core.pyi, dressed by the Python files beside it.
#include <nanobind/nanobind.h>

#include <cstdlib>

#include "all_to_all.h"
#include "errors.h"
#include "launch.h"
#include "planner.h"
#include "routing.h"
#include "world.h"

NB_MODULE(_core, module) {
  // PyTorch's graphs in a script's globals outlive the module, and with them what they hold: no leak of ours.
  nanobind::set_leak_warnings(std::getenv("SHUNT_PYTHON_LEAKS") != nullptr);
  module.doc() = "Bindings of the C++ library; use the package shunt.";
  shunt::python::translate_errors();
  shunt::python::bind_world(module);
  shunt::python::bind_all_to_all(module);
  shunt::python::bind_cuda_all_to_all(module);
  shunt::python::bind_launch(module);
  shunt::python::bind_planner(module);
  shunt::python::bind_routing(module);
}
