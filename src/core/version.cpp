#include <shunt/core/record.h>

#include "shunt_version.h"

namespace shunt {

const char* version() noexcept {
  return SHUNT_VERSION;
}
const char* git_revision() noexcept {
  return SHUNT_GIT_REVISION;
}

}  // namespace shunt
