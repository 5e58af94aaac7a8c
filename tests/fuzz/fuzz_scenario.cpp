// Any bytes read as a part of a campaign are refused with shunt::Error, or are sound. The first byte says as what they are
// read: system, scenario, time limit, node list, results.
#include <cstdlib>
#include <string>
#include <string_view>

#include <shunt/core/error.h>
#include <shunt/scenario/nodes.h>
#include <shunt/scenario/plan.h>
#include <shunt/scenario/read.h>
#include <shunt/scenario/results.h>

#include "memory_file.h"

namespace {

using namespace shunt::scenario;

void read_limit(std::string_view text) {
  const auto limit = parse_time_limit(text);
  // What is written is read back the same, whoever reads it.
  if (parse_time_limit(format_time_limit(limit)) != limit) std::abort();
}

void read_nodes(std::string_view text) {
  for (const std::string& name : parse_node_list(text))
    if (parse_node_list(name) != std::vector<std::string>{name}) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const std::string_view text(reinterpret_cast<const char*>(data + 1), size - 1);
  try {
    switch (data[0]) {
      case '0':
        (void)read_system(shunt::fuzz::MemoryFile(data + 1, size - 1).path());
        break;
      case '1': {
        const shunt::fuzz::MemoryFile file(data + 1, size - 1);
        const Scenario scenario = read_scenario(file.path());
        if (expand(scenario, System{}).empty()) std::abort();
        break;
      }
      case '2':
        read_limit(text);
        break;
      case '3':
        read_nodes(text);
        (void)image_cache_name(text);
        (void)looks_secret(text);
        break;
      default:
        (void)parse_rows(text, "input");
        break;
    }
  } catch (const shunt::Error& error) {
    if (error.code() == shunt::Errc::internal) std::abort();
  }
  return 0;
}
