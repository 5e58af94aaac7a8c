#include <shunt/plan/report.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <type_traits>
#include <utility>

#include <fmt/format.h>

#include <shunt/core/error.h>
#include <shunt/core/nearest.h>

namespace shunt::plan {
namespace {

constexpr double kMiB = 1024.0 * 1024.0;
constexpr double kGiB = 1024.0 * kMiB;

std::string show(const RecordValue& value, Unit unit) {
  return std::visit(
      [unit](const auto& v) -> std::string {
        using T = std::decay_t<decltype(v)>;
        if constexpr (std::is_same_v<T, std::monostate>) {
          return "-";
        } else if constexpr (std::is_same_v<T, bool>) {
          return v ? "yes" : "no";
        } else if constexpr (std::is_same_v<T, std::string>) {
          return v;
        } else if constexpr (std::is_same_v<T, std::int64_t>) {
          if (unit == Unit::bytes) return show_bytes(static_cast<double>(v));
          return unit == Unit::count ? show_count(v) : fmt::format("{}", v);
        } else if constexpr (std::is_same_v<T, double>) {
          if (unit == Unit::bytes) return show_bytes(v);
          if (unit == Unit::share) return fmt::format("{:.2f} %", 100 * v);
          return fmt::format("{:.8g}", v);
        } else {
          std::string text;
          for (const auto& item : v) text += fmt::format("{}{}", text.empty() ? "" : " ", item);
          return text;
        }
      },
      value);
}

/// The value as JSON has it.
std::string json_value(const RecordValue& value) {
  Record record("");
  record.set("v", value);
  const std::string line = record.to_json();
  const std::string_view before = R"({"record":"","v":)";
  return line.substr(before.size(), line.size() - before.size() - 1);
}

std::string csv_value(const RecordValue& value) {
  if (std::holds_alternative<std::monostate>(value)) return "";
  if (!std::holds_alternative<std::string>(value)) {
    const bool list = value.index() >= 5;
    return list ? show(value, Unit::none) : json_value(value);
  }
  const std::string& text = std::get<std::string>(value);
  if (text.find_first_of(",\"\n\r") == std::string::npos) return text;
  std::string quoted = "\"";
  for (const char c : text) quoted += c == '"' ? std::string("\"\"") : std::string(1, c);
  return quoted + "\"";
}

/// Characters that a terminal shows, of UTF-8 text without wide ones.
std::size_t width(const std::string& text) {
  return static_cast<std::size_t>(std::count_if(
      text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xc0U) != 0x80U; }));
}

bool is_number(const Table& table, std::size_t column) {
  return std::none_of(table.rows.begin(), table.rows.end(), [column](const std::vector<RecordValue>& row) {
    return std::holds_alternative<std::string>(row[column]);
  });
}

/// The columns that people see.
Table visible(const Table& all) {
  Table table{all.key, {}, std::vector<std::vector<RecordValue>>(all.rows.size())};
  for (std::size_t i = 0; i < all.columns.size(); ++i) {
    if (all.columns[i].for_programs) continue;
    table.columns.push_back(all.columns[i]);
    for (std::size_t r = 0; r < all.rows.size(); ++r) table.rows[r].push_back(all.rows[r][i]);
  }
  return table;
}

void render_table(const Table& all, bool markdown, std::string& out) {
  const Table table = visible(all);
  std::vector<std::vector<std::string>> cells(1);
  for (const Column& column : table.columns) cells[0].push_back(column.title);
  for (const auto& row : table.rows) {
    cells.emplace_back();
    for (std::size_t i = 0; i < row.size(); ++i) cells.back().push_back(show(row[i], table.columns[i].unit));
  }
  std::vector<std::size_t> widths(table.columns.size());
  for (const auto& row : cells)
    for (std::size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], width(row[i]));
  for (std::size_t r = 0; r < cells.size(); ++r) {
    std::string line = markdown ? "|" : "";
    for (std::size_t i = 0; i < widths.size(); ++i) {
      const std::string& cell = cells[r][i];
      const std::string space(widths[i] - width(cell), ' ');
      const std::string padded = is_number(table, i) ? space + cell : cell + space;
      line += markdown ? fmt::format(" {} |", padded) : fmt::format("{}{}", i == 0 ? "" : "  ", padded);
    }
    while (!markdown && line.ends_with(' ')) line.pop_back();
    out += line + "\n";
    if (markdown && r == 0) {
      out += "|";
      for (std::size_t i = 0; i < widths.size(); ++i)
        out += std::string(widths[i] + 1, '-') + (is_number(table, i) ? ":|" : "-|");
      out += "\n";
    }
  }
}

std::string render_json(const Report& report) {
  std::string out = report.head.to_json();
  out.pop_back();
  for (const Table& table : report.tables) {
    if (table.for_people) continue;
    out += fmt::format(",{}:[", json_value(table.key));
    for (std::size_t r = 0; r < table.rows.size(); ++r) {
      out += r == 0 ? "{" : ",{";
      for (std::size_t i = 0; i < table.columns.size(); ++i)
        out += fmt::format("{}{}:{}", i == 0 ? "" : ",", json_value(table.columns[i].key),
                           json_value(table.rows[r][i]));
      out += "}";
    }
    out += "]";
  }
  return out + fmt::format(",\"notes\":{}}}\n", json_value(report.notes));
}

std::string render_csv(const Report& report) {
  if (report.tables.empty()) return "";
  const Table& table = report.tables.at(report.csv_table);
  std::string out;
  for (std::size_t i = 0; i < table.columns.size(); ++i)
    out += (i == 0 ? "" : ",") + csv_value(table.columns[i].key);
  out += "\n";
  for (const auto& row : table.rows) {
    for (std::size_t i = 0; i < row.size(); ++i) out += (i == 0 ? "" : ",") + csv_value(row[i]);
    out += "\n";
  }
  return out;
}

}  // namespace

Format parse_format(std::string_view text) {
  constexpr std::array<std::pair<std::string_view, Format>, 4> kFormats = {
      {{"text", Format::text}, {"markdown", Format::markdown}, {"json", Format::json}, {"csv", Format::csv}}};
  std::vector<std::string> names;
  for (const auto& [name, format] : kFormats) {
    if (name == text) return format;
    names.emplace_back(name);
  }
  throw Error(Errc::invalid_argument, fmt::format("--format \"{}\": {}", text, allowed_names(text, names)));
}

std::string render(const Report& report, Format format) {
  if (format == Format::json) return render_json(report);
  if (format == Format::csv) return render_csv(report);
  const bool markdown = format == Format::markdown;
  std::string out;
  for (const std::string& line : report.summary) out += line + "\n" + (markdown ? "\n" : "");
  for (const Table& table : report.tables) {
    if (table.rows.empty() || visible(table).columns.empty()) continue;
    if (!markdown || out.empty()) out += out.empty() ? "" : "\n";
    render_table(table, markdown, out);
    if (markdown) out += "\n";
  }
  if (!report.notes.empty() && !markdown) out += "\n";
  for (const std::string& note : report.notes) out += (markdown ? "- " : "note: ") + note + "\n";
  return out;
}

std::string show_bytes(double bytes) {
  if (std::abs(bytes) >= 0.1 * kGiB || bytes == 0) return fmt::format("{:.3f} GiB", bytes / kGiB);
  return fmt::format("{:.3f} MiB", bytes / kMiB);
}

std::string show_count(std::int64_t count) {
  std::string digits = fmt::format("{}", count);
  for (std::size_t at = digits.size(); at > 3 + (count < 0 ? 1U : 0U);) digits.insert(at -= 3, ",");
  return digits;
}

std::string show_short(std::int64_t count) {
  const auto value = static_cast<double>(count);
  if (std::abs(value) >= 1e12) return fmt::format("{:.3f} T", value / 1e12);
  if (std::abs(value) >= 1e9) return fmt::format("{:.2f} B", value / 1e9);
  if (std::abs(value) >= 1e6) return fmt::format("{:.2f} M", value / 1e6);
  return fmt::format("{}", count);
}

}  // namespace shunt::plan
