// The calls of <shunt/pack/cuda.h> in a build without CUDA.
#include <shunt/core/error.h>
#include <shunt/pack/cuda.h>

#include "checks.h"

namespace shunt::cuda {
namespace {

[[noreturn]] void refuse() {
  throw Error(Errc::unavailable, "CUDA kernels cannot run: " + unavailable_reason());
}

}  // namespace

std::string unavailable_reason() {
  return "this build has no CUDA (SHUNT_CUDA=OFF, or no CUDA compiler was found)";
}

void make_plan(const PlanInput& input, const Plan& plan, void* workspace, Stream /*stream*/,
               LaunchLimit limit) {
  detail::check(input, plan, workspace, limit);
  refuse();
}

void gather(const Gather& gather, Stream /*stream*/, LaunchLimit limit) {
  detail::check(gather, limit);
  refuse();
}

void scatter(const Scatter& scatter, Stream /*stream*/, LaunchLimit limit) {
  detail::check(scatter, limit);
  refuse();
}

void combine(const Combine& combine, Stream /*stream*/, LaunchLimit limit) {
  detail::check(combine, limit);
  refuse();
}

}  // namespace shunt::cuda
