// Any text is refused with Errc::invalid_argument, or its name parses back to the same name.
#include <cstdlib>
#include <string>
#include <string_view>

#include <shunt/core/error.h>
#include <shunt/routing/routing.h>

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  std::string name;
  try {
    name = shunt::routing_name(shunt::parse_routing(text));
  } catch (const shunt::Error& error) {
    if (error.code() != shunt::Errc::invalid_argument) std::abort();
    return 0;
  }
  if (shunt::routing_name(shunt::parse_routing(name)) != name) std::abort();
  return 0;
}
