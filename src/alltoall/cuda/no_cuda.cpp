// The engine in a build without CUDA.
#include <shunt/core/error.h>
#include <shunt/pack/cuda.h>

#include "engine.h"

namespace shunt::cuda::detail {

std::unique_ptr<Engine> make_engine(Transport& /*transport*/) {
  throw Error(Errc::unavailable, "AllToAll on GPUs cannot run: " + unavailable_reason());
}

}  // namespace shunt::cuda::detail
