#pragma once

#include <string>
#include <string_view>
#include <vector>

#include <shunt/core/record.h>

namespace shunt::plan {

enum class Format { text, markdown, json, csv };

/// "text", "markdown", "json" or "csv". Errors: Errc::invalid_argument suggests the nearest.
[[nodiscard]] Format parse_format(std::string_view text);

/// How people see a number: as it is, with thousands apart, in GiB, in per cent (of a fraction).
enum class Unit { none, count, bytes, share };

struct Column {
  std::string key;    ///< In JSON and CSV, with its unit at the end
  std::string title;  ///< In text and Markdown
  Unit unit = Unit::none;
  bool for_programs = false;  ///< Left out of text and Markdown
};

struct Table {
  std::string key;
  std::vector<Column> columns;
  std::vector<std::vector<RecordValue>> rows;
  bool for_people = false;  ///< Left out of JSON, where other tables have its numbers
};

/// What a command of the planner answers, in one form for people and programs.
struct Report {
  explicit Report(std::string_view kind) : head(kind) {}
  std::vector<std::string> summary;  ///< Lines for people
  Record head;                       ///< The same and more for programs
  std::vector<Table> tables;
  std::size_t csv_table = 0;       ///< The one that is the CSV
  std::vector<std::string> notes;  ///< What was assumed, what stands out
};

/// The report as text that ends with a newline. JSON is one line: the fields of `head`, one list of objects for
/// each table, and "notes". CSV is one table, with its raw numbers.
[[nodiscard]] std::string render(const Report& report, Format format);

/// 20063312640 as "18.685 GiB", small amounts in MiB.
[[nodiscard]] std::string show_bytes(double bytes);
/// 671026419200 as "671,026,419,200".
[[nodiscard]] std::string show_count(std::int64_t count);
/// 671026419200 as "671.03 B", 44040192 as "44.04 M".
[[nodiscard]] std::string show_short(std::int64_t count);

}  // namespace shunt::plan
