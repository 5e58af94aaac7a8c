#include <shunt/core/error.h>

namespace shunt {

const char* errc_name(Errc code) noexcept {
  switch (code) {
    case Errc::invalid_argument:
      return "invalid_argument";
    case Errc::invalid_state:
      return "invalid_state";
    case Errc::out_of_memory:
      return "out_of_memory";
    case Errc::overflow:
      return "overflow";
    case Errc::timeout:
      return "timeout";
    case Errc::peer_lost:
      return "peer_lost";
    case Errc::peer_masked:
      return "peer_masked";
    case Errc::unavailable:
      return "unavailable";
    case Errc::io:
      return "io";
    case Errc::check_failed:
      return "check_failed";
    case Errc::internal:
      return "internal";
  }
  return "unknown";
}

int exit_status(Errc code) noexcept {
  switch (code) {
    case Errc::invalid_argument:
    case Errc::io:
    case Errc::out_of_memory:
    case Errc::overflow:
    case Errc::unavailable:
      return 2;
    default:
      return 1;
  }
}

}  // namespace shunt
