#pragma once

#include <string>

namespace shunt {

/// Presets of this process come from `folder`, which has models, hardware and fits, before any other folder; variables
/// still come first, and empty stands for none. For programs that this library is only a part of, such as a Python
/// interpreter.
/// Threads: not during other calls.
void set_preset_folder(std::string folder);

}  // namespace shunt
