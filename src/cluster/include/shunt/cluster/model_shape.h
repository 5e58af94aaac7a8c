#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace shunt {

/// The sizes of a mixture-of-experts model that dispatch and combine see.
struct ModelShape {
  std::string name;              ///< As given to --preset, for example "r1": the file name without .toml
  std::string description;       ///< One sentence
  std::string source;            ///< Where the numbers come from
  std::int32_t num_experts = 0;  ///< E, routed experts
  std::int32_t top_k = 0;        ///< K
  std::int64_t hidden = 0;       ///< H
};

/// Reads a model preset (TOML, docs/formats.md "Model preset"), but not its tables, which read_model reads.
/// Errors: Errc::io with file:line:column for TOML that does not parse, unknown keys (the nearest key is
///         suggested), missing keys, values outside their range.
[[nodiscard]] ModelShape read_model_shape(const std::string& path);

/// Names of the presets in `directory` (file names without .toml), sorted.
/// Errors: Errc::io where the directory cannot be read.
[[nodiscard]] std::vector<std::string> list_presets(const std::string& directory);

/// Preset by name, or by path where `name` ends in .toml. A name also holds in capitals, with _ for -, with an owner
/// and / before it ("deepseek-ai/DeepSeek-R1"); presets have other names too (key "names").
/// Errors: Errc::invalid_argument suggests the nearest name and lists those there are; Errc::io as
///         read_model_shape.
[[nodiscard]] ModelShape find_model_shape(const std::string& name, const std::string& directory);

/// Directory of the model presets: $SHUNT_PRESETS where set, else the first that exists of
/// ../share/shunt/presets/models beside this program's directory, presets/models of the source tree it was
/// built from, and the same below the install prefix it was configured for; else ./presets/models.
[[nodiscard]] std::string preset_directory();

}  // namespace shunt
