#pragma once

#include <cstdint>

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <shunt/alltoall/config.h>

namespace shunt::python {

/// The fields of shunt.Config. Errors: Errc::invalid_argument with the field and what is allowed; the library checks
/// numbers.
[[nodiscard]] AllToAllConfig config_of(const nanobind::dict& fields);

/// Scales of a row.
[[nodiscard]] std::int64_t scale_columns(const AllToAllConfig& config);
[[nodiscard]] nanobind::dlpack::dtype scale_element(ScaleType type);

}  // namespace shunt::python
