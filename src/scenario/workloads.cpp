#include <shunt/scenario/workloads.h>

#include <fmt/format.h>

#include "templates.h"

namespace shunt::scenario {
namespace {

std::string kind_of(const Field& field) {
  switch (field.kind) {
    case FieldKind::flag:
      return "true or false";
    case FieldKind::whole:
      return fmt::format("{:.0f} to {:.0f}", field.low, field.high);
    case FieldKind::number:
      return fmt::format("number, {} to {}", field.low, field.high);
    case FieldKind::text:
      return "text";
    case FieldKind::choice:
      return field.choices;
    case FieldKind::texts:
      return *field.choices == '\0' ? "list of texts" : fmt::format("list of {}", field.choices);
  }
  return {};
}

}  // namespace

std::string describe_workloads(const std::string& name) {
  std::string text;
  if (name.empty()) {
    for (const Template& one : templates()) text += fmt::format("{:<16} {}\n", one.name, one.about);
    return text;
  }
  (void)find_template(name, {});
  for (const Template& one : templates()) {
    if (name != one.name) continue;
    text += fmt::format("{}: {}\n", one.name, one.about);
    for (const Field& field : one.fields)
      text += fmt::format("  {:<32} {}{}{}{}\n", field.name, kind_of(field),
                          field.standard == nullptr ? "" : ", default ",
                          field.standard == nullptr ? "" : field.standard,
                          *field.about == '\0' ? "" : fmt::format("; {}", field.about));
  }
  return text;
}

}  // namespace shunt::scenario
