#include <shunt/core/error.h>

#include "cublaslt_gemm.h"

namespace shunt::bench {

std::string cublaslt_unavailable() {
  return "this build has no cuBLASLt";
}

std::unique_ptr<Gemm> make_cublaslt_gemm(const GemmShape& /*shape*/, void* /*stream*/) {
  throw Error(Errc::unavailable, cublaslt_unavailable());
}

}  // namespace shunt::bench
