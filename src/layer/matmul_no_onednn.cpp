#include "matmul_onednn.h"

namespace shunt {

std::string onednn_missing() {
  return "this build has no oneDNN (Debian package libdnnl-dev)";
}

std::string onednn_name() {
  return {};
}

OneThread::OneThread() = default;
OneThread::~OneThread() = default;

namespace detail {
bool onednn_matmul(const MatmulCall& /*call*/) {
  return false;
}
}  // namespace detail

}  // namespace shunt
