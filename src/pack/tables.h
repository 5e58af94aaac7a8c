#pragma once

#include <shunt/pack/kernels.h>

namespace shunt::detail {

/// Each is defined by its own file, which only the builds for its processor contain.
extern const PackKernels kScalarKernels;
extern const PackKernels kAvx2Kernels;
extern const PackKernels kAvx512Kernels;
extern const PackKernels kNeonKernels;

}  // namespace shunt::detail
