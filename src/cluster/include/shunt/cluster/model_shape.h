#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace shunt {

/// The sizes of a mixture-of-experts model that dispatch and combine see.
struct ModelShape {
  std::string name;         ///< As given to --preset, for example "r1"
  std::string description;  ///< One sentence
  std::string source;       ///< Where the numbers come from
  std::int32_t num_experts = 0;  ///< E, routed experts
  std::int32_t top_k = 0;        ///< K
  std::int64_t hidden = 0;       ///< H
};

/// Reads a model preset (TOML, docs/formats.md "Model preset").
/// Errors: Errc::io with file:line:column for TOML that does not parse, unknown keys (the nearest key is suggested), missing
///         keys, values outside their range.
[[nodiscard]] ModelShape read_model_shape(const std::string& path);

/// Names of the presets in `directory` (file names without .toml), sorted.
[[nodiscard]] std::vector<std::string> list_presets(const std::string& directory);

/// Preset by name, or by path where `name` ends in .toml.
/// Errors: Errc::invalid_argument lists the names there are; Errc::io as read_model_shape.
[[nodiscard]] ModelShape find_model_shape(const std::string& name, const std::string& directory);

/// Directory of the presets: $SHUNT_PRESETS where set, else presets/models beside the source or install tree this binary
/// was built from, else ./presets/models.
[[nodiscard]] std::string preset_directory();

}  // namespace shunt
