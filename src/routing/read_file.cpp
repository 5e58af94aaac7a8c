#include "read_file.h"

#include <cerrno>
#include <cstring>
#include <fstream>
#include <iterator>

#include <fmt/format.h>

#include <shunt/core/error.h>

namespace shunt::detail {

std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw Error(Errc::io, fmt::format("{}: cannot open: {}", path, std::strerror(errno)));
  try {
    return {std::istreambuf_iterator<char>(file), {}};
  } catch (const std::ios_base::failure&) {
    // A directory opens, and the buffer throws at the first byte.
    throw Error(Errc::io, fmt::format("{}: cannot read: {}", path, std::strerror(errno)));
  }
}

}  // namespace shunt::detail
