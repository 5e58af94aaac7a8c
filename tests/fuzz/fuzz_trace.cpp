// Any bytes read as a routing trace end in a trace that passes check_routing, or in a shunt::Error.
#include <shunt/core/error.h>
#include <shunt/routing/trace.h>

#include "memory_file.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const shunt::fuzz::MemoryFile file(data, size);
  shunt::Trace trace;
  try {
    trace = shunt::read_trace(file.path());
  } catch (const shunt::Error& error) {
    if (error.code() == shunt::Errc::internal) std::abort();
    return 0;
  }
  for (const auto& groups : trace.steps)
    for (const shunt::Routing& routing : groups) shunt::check_routing(routing, "the trace just read");
  return 0;
}
