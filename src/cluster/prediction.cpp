#include <cmath>
#include <optional>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <shunt/cluster/calibration.h>

// Rows of a measurement file with predictions beside what was measured.

namespace shunt {
namespace {

using nlohmann::ordered_json;

struct Cell {
  std::optional<double> predicted_us;  ///< None where no fit knows the case
  double measured_us = 0;              ///< 0: not measured

  [[nodiscard]] std::optional<double> error_pct() const {
    if (!predicted_us || measured_us <= 0) return std::nullopt;
    return 100 * (*predicted_us / measured_us - 1);
  }
};

/// Predictions of one row: one for each measured column, and the sum where there are several.
std::vector<Cell> predict_row(const MeasurementFile& file, const CostModel& model, std::size_t row) {
  const std::size_t columns = file.measured.size();
  std::vector<Cell> cells;
  double predicted = 0;
  double measured = 0;
  bool complete = true;
  for (std::size_t i = 0; i < columns; ++i) {
    const CostCase& c = file.cases[row * columns + i];
    const double us = model.predict(c).us;
    cells.push_back({us, c.measured_us});
    predicted += us;
    measured += c.measured_us;
    complete = complete && c.measured_us > 0;
  }
  if (columns > 1) cells.push_back({predicted, complete ? measured : 0});
  return cells;
}

/// Predictions of the columns that count to no sum.
std::vector<Cell> predict_beside(const MeasurementFile& file, const CostModel& model, std::size_t row) {
  std::vector<Cell> cells;
  for (std::size_t i = 0; i < file.beside.size(); ++i) {
    const CostCase& c = file.beside_cases[row * file.beside.size() + i];
    // One node has no such call, and a fit of older files does not know it.
    const bool known = c.nodes > 1 && model.knows(c);
    cells.push_back({known ? std::optional<double>(model.predict(c).us) : std::nullopt, c.measured_us});
  }
  return cells;
}

std::string prefix(const MeasurementFile& file, std::size_t i) {
  return i < file.measured.size() && !file.measured[i].op.empty() ? file.measured[i].op + "_" : std::string();
}

std::string text_of(const std::optional<double>& value, int digits) {
  return value ? fmt::format("{:.{}f}", *value, digits) : std::string();
}

ordered_json json_of(const std::optional<double>& value) {
  return value ? ordered_json(*value) : ordered_json();
}

ordered_json typed(const std::string& text) {
  const ordered_json value = ordered_json::parse(text, nullptr, false);
  return value.is_number() ? value : ordered_json(text);
}

}  // namespace

std::string predicted_csv(const MeasurementFile& file, const CostModel& model) {
  std::string out;
  const auto line = [&](const std::vector<std::string>& cells, const auto& beside, const auto& apart) {
    for (std::size_t column = 0; column < cells.size(); ++column) {
      out += (column == 0 ? "" : ",") + cells[column];
      for (std::size_t i = 0; i < file.measured.size(); ++i)
        if (file.measured[i].column == column) out += beside(i);
      for (std::size_t i = 0; i < file.beside.size(); ++i)
        if (file.beside[i].column == column) out += apart(i);
    }
    if (file.measured.size() > 1) out += beside(file.measured.size());
    out += '\n';
  };
  line(
      file.header,
      [&](std::size_t i) { return fmt::format(",{0}predicted_us,{0}error_pct", prefix(file, i)); },
      [&](std::size_t i) { return fmt::format(",{0}_predicted_us,{0}_error_pct", file.beside[i].op); });
  for (std::size_t row = 0; row < file.rows.size(); ++row) {
    const std::vector<Cell> cells = predict_row(file, model, row);
    const std::vector<Cell> others = predict_beside(file, model, row);
    const auto text = [](const Cell& cell) {
      return fmt::format(",{},{}", text_of(cell.predicted_us, 4), text_of(cell.error_pct(), 2));
    };
    line(
        file.rows[row], [&](std::size_t i) { return text(cells[i]); },
        [&](std::size_t i) { return text(others[i]); });
  }
  return out;
}

std::string predicted_json(const MeasurementFile& file, const CostModel& model) {
  ordered_json rows = ordered_json::array();
  std::vector<std::vector<double>> errors(file.measured.size() + 1);
  std::vector<std::vector<double>> beside_errors(file.beside.size());
  for (std::size_t row = 0; row < file.rows.size(); ++row) {
    const std::vector<Cell> cells = predict_row(file, model, row);
    ordered_json entry;
    for (std::size_t column = 0; column < file.header.size(); ++column)
      entry[file.header[column]] = typed(file.rows[row][column]);
    for (std::size_t i = 0; i < cells.size(); ++i) {
      const std::optional<double> error = cells[i].error_pct();
      entry[prefix(file, i) + "predicted_us"] = json_of(cells[i].predicted_us);
      entry[prefix(file, i) + "error_pct"] = json_of(error);
      if (error) errors[i].push_back(std::abs(*error));
    }
    const std::vector<Cell> others = predict_beside(file, model, row);
    for (std::size_t i = 0; i < others.size(); ++i) {
      const std::optional<double> error = others[i].error_pct();
      entry[file.beside[i].op + "_predicted_us"] = json_of(others[i].predicted_us);
      entry[file.beside[i].op + "_error_pct"] = json_of(error);
      if (error) beside_errors[i].push_back(std::abs(*error));
    }
    rows.push_back(std::move(entry));
  }
  ordered_json summary = ordered_json::array();
  const auto summarize = [&](const std::string& name, const std::vector<double>& list) {
    if (list.empty()) return;
    const ErrorSummary s = summarize_errors(list);
    summary.push_back({{"column", name},
                       {"rows", s.rows},
                       {"median_error_pct", s.median_pct},
                       {"p90_error_pct", s.p90_pct},
                       {"max_error_pct", s.max_pct}});
  };
  for (std::size_t i = 0; i < errors.size(); ++i)
    summarize(i < file.measured.size() ? prefix(file, i) + "predicted_us" : std::string("predicted_us"),
              errors[i]);
  for (std::size_t i = 0; i < beside_errors.size(); ++i)
    summarize(file.beside[i].op + "_predicted_us", beside_errors[i]);
  ordered_json document = {{"record", "predictions"},    {"format", 1},       {"file", file.path},
                           {"file_format", file.format}, {"errors", summary}, {"rows", rows}};
  return document.dump(2) + "\n";
}

}  // namespace shunt
