#include "torch_plugin.h"

#include <cstring>

#include <fmt/format.h>

#include <shunt/core/error.h>
#include <shunt/core/plugin.h>

namespace shunt::bench {
namespace {

const TorchTable& load() {
  std::string searched;
  using Function = const TorchTable* (*)();
  auto* function = reinterpret_cast<Function>(load_plugin("shunt_torch", kTorchFunction, searched));
  if (function == nullptr)
    throw Error(Errc::unavailable,
                fmt::format("--impl torch needs libshunt_torch.so, which is in none of: {}. Install libtorch "
                            "(scripts/install-dependencies torch), then make build, which makes it where "
                            "libtorch is found (CMake option SHUNT_TORCH)",
                            searched));
  const TorchTable* table = function();
  if (table == nullptr || table->build == nullptr || std::strcmp(table->build, kTorchBuild) != 0)
    throw Error(Errc::unavailable,
                fmt::format("libshunt_torch.so belongs to another build ('{}', this one is '{}')",
                            table == nullptr || table->build == nullptr ? "" : table->build, kTorchBuild));
  return *table;
}

}  // namespace

const TorchTable& torch_plugin() {
  static const TorchTable& table = load();
  return table;
}

std::string torch_unavailable_reason() {
  try {
    (void)torch_plugin();
    return {};
  } catch (const Error& error) {
    return error.what();
  }
}

}  // namespace shunt::bench
