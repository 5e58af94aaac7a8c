#include <algorithm>
#include <cmath>
#include <filesystem>

#include <fmt/format.h>

#include <shunt/cluster/calibration.h>
#include <shunt/core/error.h>

#include "presets.h"
#include "toml_reader.h"

// Fit files: docs/formats.md, "Fit".

namespace shunt {
namespace {

constexpr std::int64_t kFormat = 1;

/// TOML basic string. Names come from files and may hold anything that a cell can hold.
std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    if (static_cast<unsigned char>(c) < 0x20)
      out += fmt::format("\\u{:04x}", static_cast<unsigned>(c));
    else
      out += c;
  }
  return out + '"';
}

void write_errors(std::string& out, const char* name, const ErrorSummary& errors) {
  if (errors.rows == 0) return;
  out += fmt::format("{} = {{ rows = {}, median_pct = {:.3f}, p90_pct = {:.3f}, max_pct = {:.3f} }}\n", name,
                     errors.rows, errors.median_pct, errors.p90_pct, errors.max_pct);
}

ErrorSummary read_errors(const detail::TomlReader& fit, const char* name) {
  ErrorSummary errors;
  if (!fit.has(name)) return errors;
  const detail::TomlReader reader = fit.table(name, {"rows", "median_pct", "p90_pct", "max_pct"});
  errors.rows = reader.integer("rows", 1, std::int64_t{1} << 40);
  errors.median_pct = reader.number("median_pct", 0, 1e12);
  errors.p90_pct = reader.number("p90_pct", 0, 1e12);
  errors.max_pct = reader.number("max_pct", 0, 1e12);
  return errors;
}

[[noreturn]] void fail(const std::string& path, const toml::source_position& where, const std::string& why) {
  throw Error(Errc::io, fmt::format("{}:{}:{}: {}", path, where.line, where.column, why));
}

CostFit read_fit(const std::string& path, const toml::table& table) {
  const detail::TomlReader reader(
      path, table,
      {"regime", "op", "variant", "hardware", "fitted", "shape_left_out", "scale_left_out", "parameters"},
      "fit.");
  CostFit fit;
  fit.regime = reader.text("regime");
  fit.op = reader.text("op");
  fit.variant = reader.has("variant") ? reader.text("variant") : std::string();
  fit.hardware = reader.text("hardware");
  fit.fitted = read_errors(reader, "fitted");
  fit.shape_left_out = read_errors(reader, "shape_left_out");
  fit.scale_left_out = read_errors(reader, "scale_left_out");
  const CostForm* form = nullptr;
  try {
    form = &find_cost_form(fit.regime, fit.op);
  } catch (const Error& error) {
    reader.fail("regime", error.what());
  }
  std::vector<std::string> names;
  for (const CostParameter& parameter : form->parameters) names.push_back(parameter.name);
  const detail::TomlReader values = reader.table("parameters", names);
  for (const CostParameter& parameter : form->parameters)
    fit.parameters.push_back(values.number(parameter.name, parameter.low * 0.999, parameter.high * 1.001));
  return fit;
}

}  // namespace

std::string to_toml(const Calibration& calibration) {
  std::string out = "# Made by shunt calibrate.\n";
  out += fmt::format("format = {}\nshunt = {}\n", kFormat, quoted(calibration.shunt_version));
  if (!calibration.date.empty()) out += fmt::format("date = {}\n", quoted(calibration.date));
  for (const CalibrationSource& source : calibration.sources) {
    out += fmt::format("\n[[source]]\nfile = {}\nsha256 = {}\nrows = {}\n", quoted(source.file),
                       quoted(source.sha256), source.rows);
  }
  for (const CostFit& fit : calibration.fits) {
    out += fmt::format("\n[[fit]]\nregime = {}\nop = {}\n", quoted(fit.regime), quoted(fit.op));
    if (!fit.variant.empty()) out += fmt::format("variant = {}\n", quoted(fit.variant));
    out += fmt::format("hardware = {}\n", quoted(fit.hardware));
    write_errors(out, "fitted", fit.fitted);
    write_errors(out, "shape_left_out", fit.shape_left_out);
    write_errors(out, "scale_left_out", fit.scale_left_out);
    out += "[fit.parameters]\n";
    const CostForm& form = find_cost_form(fit.regime, fit.op);
    for (std::size_t i = 0; i < form.parameters.size(); ++i) {
      const CostParameter& parameter = form.parameters[i];
      out += fmt::format("{} = {:.6e} # {}{}{}\n", parameter.name, fit.parameters[i], parameter.unit,
                         parameter.unit.empty() ? "" : ": ", parameter.meaning);
    }
  }
  return out;
}

Calibration read_calibration(const std::string& path) {
  const toml::table table = detail::parse_toml(path);
  const detail::TomlReader reader(path, table, {"format", "shunt", "date", "source", "fit"});
  detail::expect_format(reader, kFormat);
  Calibration calibration;
  calibration.shunt_version = reader.text("shunt");
  if (reader.has("date")) calibration.date = reader.text("date");
  const auto tables = [&](const char* key) {
    std::vector<const toml::table*> list;
    const toml::node* node = table.get(key);
    if (node == nullptr) return list;
    const toml::array* array = node->as_array();
    if (array == nullptr)
      fail(path, node->source().begin, fmt::format("{}: expected [[{}]] tables", key, key));
    for (const toml::node& entry : *array) {
      if (!entry.is_table()) fail(path, entry.source().begin, fmt::format("{}: expected a table", key));
      list.push_back(entry.as_table());
    }
    return list;
  };
  for (const toml::table* entry : tables("source")) {
    const detail::TomlReader source(path, *entry, {"file", "sha256", "rows"}, "source");
    calibration.sources.push_back(
        {source.text("file"), source.text("sha256"), source.integer("rows", 0, std::int64_t{1} << 40)});
  }
  for (const toml::table* entry : tables("fit")) calibration.fits.push_back(read_fit(path, *entry));
  if (calibration.fits.empty()) fail(path, {1, 1}, "a fit file needs at least one [[fit]]");
  return calibration;
}

std::string default_calibration_path() {
  return (std::filesystem::path(detail::find_directory("SHUNT_FITS", "fits")) / "measured.toml").string();
}

}  // namespace shunt
