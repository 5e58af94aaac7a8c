#include <shunt/cluster/model_shape.h>

#include <limits>

#include "presets.h"
#include "toml_reader.h"

namespace shunt {
namespace {

constexpr std::int64_t kFormat = 1;
constexpr const char* kEnvironment = "SHUNT_PRESETS";

}  // namespace

ModelShape read_model_shape(const std::string& path) {
  const toml::table table = detail::parse_toml(path);
  const detail::TomlReader reader(path, table,
                                  {"format", "description", "source", "names", "experts", "topk", "hidden",
                                   "architecture", "attention", "linear_attention"});
  detail::expect_format(reader, kFormat);
  constexpr std::int64_t kMaxInt32 = std::numeric_limits<std::int32_t>::max();
  ModelShape shape;
  shape.name = detail::stem(path);
  shape.description = reader.text("description");
  shape.source = reader.text("source");
  (void)reader.texts_or_none("names");
  shape.num_experts = static_cast<std::int32_t>(reader.integer("experts", 1, kMaxInt32));
  shape.top_k = static_cast<std::int32_t>(reader.integer("topk", 1, shape.num_experts));
  shape.hidden = reader.integer("hidden", 1, std::int64_t{1} << 40);
  return shape;
}

std::vector<std::string> list_presets(const std::string& directory) {
  return detail::list_files(directory, "model", kEnvironment);
}

ModelShape find_model_shape(const std::string& name, const std::string& directory) {
  return read_model_shape(detail::find_model_file(name, directory));
}

std::string preset_directory() {
  return detail::find_directory(kEnvironment, "models");
}

}  // namespace shunt
