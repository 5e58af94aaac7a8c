#include <shunt/bench/gemm.h>
#include <shunt/core/error.h>

namespace shunt::bench {

std::string onednn_unavailable() {
  return "this build has no oneDNN (Debian package libdnnl-dev)";
}

std::string onednn_version() {
  return {};
}

std::unique_ptr<Gemm> make_onednn_gemm(const GemmShape& /*shape*/, void* /*stream*/) {
  throw Error(Errc::unavailable, "matrix products on the CPU: " + onednn_unavailable());
}

}  // namespace shunt::bench
