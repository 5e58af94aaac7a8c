#pragma once

#include <string>
#include <vector>

namespace shunt::detail {

/// Directory of presets: `environment` where that variable is set, else the first that exists of
/// ../share/shunt/presets/<folder> beside this program's directory, presets/<folder> of the source tree it was
/// built from, and the same below the install prefix it was configured for; else ./presets/<folder>.
/// What set_preset_folder() set comes before these folders.
[[nodiscard]] std::string find_directory(const char* environment, const std::string& folder);
[[nodiscard]] std::string& preset_folder() noexcept;

/// Names of the .toml files in `directory`, sorted. `kind` ("model") and `environment` are for the message.
/// Errors: Errc::io where the directory cannot be read.
[[nodiscard]] std::vector<std::string> list_files(const std::string& directory, const std::string& kind,
                                                  const char* environment);

/// Path of the preset `name`, or `name` itself where it ends in .toml.
/// Errors: Errc::invalid_argument suggests the nearest name and lists those there are.
[[nodiscard]] std::string find_file(const std::string& name, const std::string& directory,
                                    const std::string& kind, const char* environment);

/// The same for models, whose names also hold in capitals, with _ for -, with an owner and / before them, and which
/// have other names (key "names" of their file).
[[nodiscard]] std::string find_model_file(const std::string& name, const std::string& directory);

/// File name without .toml.
[[nodiscard]] std::string stem(const std::string& path);

}  // namespace shunt::detail
