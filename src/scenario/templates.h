#pragma once

#include <span>
#include <string>
#include <vector>

#include <shunt/scenario/model.h>

namespace shunt::scenario {

enum class FieldKind { flag, whole, number, text, choice, texts };

/// One key of [cmd_args]. Texts have static storage.
struct Field {
  const char* name;
  FieldKind kind;
  const char* standard;  ///< default as text; null: no default
  double low = 0;
  double high = 0;
  const char* choices = "";  ///< "a|b|c"
  const char* about = "";
};

/// A kind of test, `test_template_name` in a file.
struct Template {
  const char* name;
  Workload workload;
  const char* about;
  std::span<const Field> fields;
};

/// All templates; DeepEP is there twice, once for each of its generations.
[[nodiscard]] std::span<const Template> templates();

/// The names that test_template_name may have, each once.
[[nodiscard]] std::vector<std::string> template_names();

/// The template of a name. DeepEP has keys of two generations: `keys` decide, and where both or none of them fit, the
/// newer one is taken.
/// Errors: Errc::invalid_argument with the nearest name; for DeepEP where keys of both generations are mixed.
[[nodiscard]] const Template& find_template(const std::string& name, const std::vector<std::string>& keys);

/// The default of a field as an argument.
[[nodiscard]] Argument default_argument(const Field& field);

/// What the values of a test must fulfil together, such as top-k <= experts.
/// Errors: Errc::io with the place of the argument.
void check_together(const TestDefinition& test, const Place& place);

}  // namespace shunt::scenario
