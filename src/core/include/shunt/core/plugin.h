#pragma once

#include <string>

namespace shunt {

/// The function `function` of the shared library lib<name>.so of this build: optional parts that need large libraries are
/// loaded when they are asked for, so that the program starts without those libraries. Never unloaded.
/// Result:  null where there is no such file; `searched` then lists the folders: SHUNT_PLUGIN_PATH, that of the program,
///          the one above, and lib/shunt there.
/// Errors:  Errc::unavailable where the file is there but cannot be loaded or has no such function.
[[nodiscard]] void* load_plugin(const std::string& name, const std::string& function, std::string& searched);

}  // namespace shunt
