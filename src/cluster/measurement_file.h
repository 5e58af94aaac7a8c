#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include <shunt/cluster/measurement.h>

namespace shunt::detail {

/// Longest time that is taken for a measurement: 100 s.
inline constexpr double kMaxLatencyUs = 1e8;

/// Cells of one row by the name of their column, each checked when it is read.
class RowReader {
 public:
  RowReader(const MeasurementFile& file, std::size_t row) : file_(file), row_(row) {}

  [[nodiscard]] bool has(std::string_view column) const;
  [[nodiscard]] const std::string& text(std::string_view column) const;
  [[nodiscard]] std::int64_t whole(std::string_view column, std::int64_t low, std::int64_t high) const;
  [[nodiscard]] double number(std::string_view column, double low, double high) const;
  /// A latency in microseconds, or 0 where the cell is empty.
  [[nodiscard]] double latency(std::string_view column) const;
  [[nodiscard]] std::string where() const;
  [[noreturn]] void fail(std::string_view column, const std::string& why) const;

 private:
  [[nodiscard]] std::size_t find(std::string_view column) const;

  const MeasurementFile& file_;
  std::size_t row_;
};

/// Refuses a line of a file.
[[noreturn]] void fail_at(const std::string& path, std::int64_t line, const std::string& why);

/// Fills `file` from the text of the two formats that are not CSV.
void read_bench_records(MeasurementFile& file, const std::string& text);
void read_nccl_tests(MeasurementFile& file, const std::string& text, const std::string& hardware);

}  // namespace shunt::detail
