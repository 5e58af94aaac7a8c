#include <shunt/cluster/measurement.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <sstream>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <shunt/cluster/volume.h>
#include <shunt/core/error.h>
#include <shunt/core/nearest.h>

#include "measurement_file.h"

#include "sha256.h"
#include "toml_reader.h"

namespace shunt {
namespace detail {

void fail_at(const std::string& path, std::int64_t line, const std::string& why) {
  throw Error(Errc::io, fmt::format("{}:{}: {}", path, line, why));
}

std::size_t RowReader::find(std::string_view column) const {
  for (std::size_t i = 0; i < file_.header.size(); ++i)
    if (file_.header[i] == column) return i;
  return file_.header.size();
}

bool RowReader::has(std::string_view column) const {
  return find(column) < file_.header.size();
}

std::string RowReader::where() const {
  return fmt::format("{}:{}", file_.path, file_.lines[row_]);
}

void RowReader::fail(std::string_view column, const std::string& why) const {
  fail_at(file_.path, file_.lines[row_], fmt::format("{} \"{}\": {}", column, text(column), why));
}

const std::string& RowReader::text(std::string_view column) const {
  return file_.rows[row_][find(column)];
}

std::int64_t RowReader::whole(std::string_view column, std::int64_t low, std::int64_t high) const {
  const std::string& cell = text(column);
  std::int64_t value = 0;
  const auto [end, error] = std::from_chars(cell.data(), cell.data() + cell.size(), value);
  if (error != std::errc{} || end != cell.data() + cell.size() || value < low || value > high)
    fail(column, fmt::format("expected an integer in [{}, {}]", low, high));
  return value;
}

double RowReader::number(std::string_view column, double low, double high) const {
  const std::string& cell = text(column);
  double value = 0;
  const auto [end, error] = std::from_chars(cell.data(), cell.data() + cell.size(), value);
  if (error != std::errc{} || end != cell.data() + cell.size() || !(value >= low) || !(value <= high))
    fail(column, fmt::format("expected a number in [{}, {}]", low, high));
  return value;
}

double RowReader::latency(std::string_view column) const {
  if (text(column).empty()) return 0;
  return number(column, 1e-3, kMaxLatencyUs);
}

}  // namespace detail

namespace {

using detail::fail_at;
using detail::RowReader;

constexpr std::int64_t kMaxNodes = 1 << 16;
constexpr std::int64_t kMaxHidden = 1 << 20;
constexpr std::int64_t kMaxExperts = 1 << 16;
constexpr std::int64_t kMaxTokens = std::int64_t{1} << 30;
constexpr std::int32_t kGpusOfNode = 8;

/// A CSV format: which columns it has (the first of them that no other format has tells it), which hold latencies.
struct CsvFormat {
  std::string name;
  std::string mark;
  std::vector<std::string> columns;
  std::vector<std::string> optional;
  std::vector<std::string> latencies;
};

const std::vector<CsvFormat>& csv_formats() {
  static const std::vector<CsvFormat> formats = {
      {"published",
       "system",
       {"system", "regime", "op", "variant", "hardware", "ranks", "nodes", "hidden", "experts", "topk",
        "node_limit", "tokens_per_rank", "distribution", "payload", "sms", "latency_us"},
       {},
       {"latency_us"}},
      {"deepep_normal",
       "dispatch_sms",
       {"hardware", "collected_with", "nodes", "hidden", "experts", "topk", "tokens_per_rank", "dispatch_sms",
        "dispatch_us", "dispatch_notify_us", "combine_sms", "combine_us", "combine_notify_us"},
       {"imbalance"},
       {"dispatch_us", "combine_us"}},
      {"deepep_low_latency",
       "dispatch_us",
       {"hardware", "collected_with", "nodes", "hidden", "experts", "topk", "tokens_per_rank", "dispatch_us",
        "combine_us"},
       {"imbalance"},
       {"dispatch_us", "combine_us"}},
      {"trtllm",
       "moe_dtype",
       {"hardware", "collected_with", "kernel", "moe_dtype", "ep", "hidden", "experts", "topk",
        "tokens_per_rank", "distribution", "op", "latency_us"},
       {"imbalance"},
       {"latency_us"}},
      {"nccl",
       "message_elements",
       {"hardware", "collected_with", "op", "dtype", "gpus", "message_elements", "latency_us"},
       {},
       {"latency_us"}},
  };
  return formats;
}

std::vector<std::string> split(const std::string& line) {
  std::vector<std::string> cells(1);
  for (const char c : line) {
    if (c == ',')
      cells.emplace_back();
    else
      cells.back().push_back(c);
  }
  return cells;
}

const CsvFormat& recognise(const std::string& path, const std::vector<std::string>& header) {
  const auto has = [&](const std::string& name) {
    return std::find(header.begin(), header.end(), name) != header.end();
  };
  for (const CsvFormat& format : csv_formats()) {
    if (!has(format.mark)) continue;
    std::vector<std::string> known = format.columns;
    known.insert(known.end(), format.optional.begin(), format.optional.end());
    for (const std::string& name : header) {
      if (std::count(header.begin(), header.end(), name) > 1)
        fail_at(path, 1, fmt::format("the column \"{}\" is there twice", name));
      if (std::find(known.begin(), known.end(), name) == known.end()) {
        fail_at(path, 1,
                fmt::format("unknown column \"{}\" in a {} file; {}", name, format.name,
                            allowed_names(name, known)));
      }
    }
    for (const std::string& name : format.columns)
      if (!has(name)) fail_at(path, 1, fmt::format("a {} file needs the column \"{}\"", format.name, name));
    return format;
  }
  std::vector<std::string> marks;
  for (const CsvFormat& format : csv_formats()) marks.push_back(format.mark);
  fail_at(
      path, 1,
      fmt::format("this is no format that is known; expected one of the columns {}, a file of shunt bench "
                  "--jsonl, or output of nccl-tests",
                  fmt::join(marks, ", ")));
}

void read_rows(MeasurementFile& file, std::istringstream& stream) {
  std::string line;
  for (std::int64_t number = 2; std::getline(stream, line); ++number) {
    if (!line.empty() && line.back() == '\r') line.pop_back();
    if (line.empty()) continue;
    if (line.find('"') != std::string::npos) fail_at(file.path, number, "quoted cells are not supported");
    std::vector<std::string> cells = split(line);
    if (cells.size() != file.header.size()) {
      fail_at(file.path, number,
              fmt::format("{} cells, but the header has {}", cells.size(), file.header.size()));
    }
    file.rows.push_back(std::move(cells));
    file.lines.push_back(number);
  }
}

CostCase common_case(const RowReader& row) {
  CostCase c;
  c.hardware = row.text("hardware");
  if (c.hardware.empty()) row.fail("hardware", "expected a name");
  if (row.has("collected_with")) c.collected_with = row.text("collected_with");
  if (row.has("imbalance")) c.imbalance = row.number("imbalance", 1, 1e6);
  c.where = row.where();
  return c;
}

void read_shape(const RowReader& row, CostCase& c) {
  c.hidden = row.whole("hidden", 1, kMaxHidden);
  c.experts = row.whole("experts", 1, kMaxExperts);
  c.topk = row.whole("topk", 1, c.experts);
  c.tokens_per_rank = row.whole("tokens_per_rank", 0, kMaxTokens);
}

void read_distribution(const RowReader& row, CostCase& c) {
  if (row.text("distribution") == "balanced")
    c.dealt_in_turn = true;
  else if (row.text("distribution") != "uniform")
    row.fail("distribution", "expected balanced or uniform");
}

void read_deepep(MeasurementFile& file, const RowReader& row, bool normal) {
  CostCase c = common_case(row);
  c.regime = file.format;
  c.nodes = static_cast<std::int32_t>(row.whole("nodes", 1, kMaxNodes));
  c.ranks = c.nodes * kGpusOfNode;
  read_shape(row, c);
  // The measuring program sets ten random selections to -1, in the low-latency mode only.
  c.masked_draws = normal ? 0 : 10;
  for (const char* op : {"dispatch", "combine"}) {
    CostCase one = c;
    one.op = op;
    one.payload = one.op == "dispatch" ? "fp8_block128" : "bfloat16";
    one.measured_us = row.latency(one.op + "_us");
    if (normal) {
      one.sms = static_cast<std::int32_t>(row.whole(one.op + "_sms", 2, 1024));
      CostCase notify = one;
      notify.regime = "deepep_notify";
      notify.measured_us = 0;
      if (!row.text(one.op + "_notify_us").empty())
        notify.measured_us = row.number(one.op + "_notify_us", 0, detail::kMaxLatencyUs);
      file.beside_cases.push_back(std::move(notify));
    }
    file.cases.push_back(std::move(one));
  }
}

void read_trtllm(MeasurementFile& file, const RowReader& row) {
  CostCase c = common_case(row);
  c.regime = "trtllm_nvlink_alltoall";
  c.variant = row.text("kernel");
  c.ranks = static_cast<std::int32_t>(row.whole("ep", 1, kMaxNodes));
  read_shape(row, c);
  read_distribution(row, c);
  c.op = row.text("op");
  static const std::vector<std::string> ops = {"dispatch", "combine", "combine_low_precision", "prepare"};
  if (std::find(ops.begin(), ops.end(), c.op) == ops.end())
    row.fail("op", fmt::format("expected {}", fmt::join(ops, ", ")));
  const std::string& dtype = row.text("moe_dtype");
  static const std::vector<std::string> dtypes = {"bfloat16", "fp8", "nvfp4"};
  if (std::find(dtypes.begin(), dtypes.end(), dtype) == dtypes.end())
    row.fail("moe_dtype", fmt::format("expected {}", fmt::join(dtypes, ", ")));
  c.expert_dtype = dtype;
  c.payload = c.op == "dispatch"                ? dtype
              : c.op == "combine"               ? "bfloat16"
              : c.op == "combine_low_precision" ? "fp8"
                                                : "none";
  c.measured_us = row.latency("latency_us");

  file.cases.push_back(std::move(c));
}

void read_nccl(MeasurementFile& file, const RowReader& row) {
  CostCase c = common_case(row);
  c.regime = "nccl";
  c.op = row.text("op");
  static const std::vector<std::string> ops = {"all_gather", "alltoall", "reduce_scatter", "all_reduce"};
  if (std::find(ops.begin(), ops.end(), c.op) == ops.end())
    row.fail("op", fmt::format("expected {}", fmt::join(ops, ", ")));
  c.payload = row.text("dtype");
  static const std::vector<std::string> dtypes = {"half", "bfloat16", "int8", "float"};
  if (std::find(dtypes.begin(), dtypes.end(), c.payload) == dtypes.end())
    row.fail("dtype", fmt::format("expected {}", fmt::join(dtypes, ", ")));
  c.ranks = static_cast<std::int32_t>(row.whole("gpus", 2, kMaxNodes));
  c.message_bytes = row_bytes(c.payload, row.whole("message_elements", 1, std::int64_t{1} << 40));
  c.measured_us = row.latency("latency_us");
  file.cases.push_back(std::move(c));
}

void read_published(MeasurementFile& file, const RowReader& row) {
  CostCase c = common_case(row);
  c.regime = row.text("regime");
  c.op = row.text("op");
  c.variant = row.text("variant");
  try {
    static_cast<void>(find_cost_form(c.regime, c.op));
  } catch (const Error& error) {
    row.fail("regime", error.what());
  }
  c.ranks = static_cast<std::int32_t>(row.whole("ranks", 1, kMaxNodes));
  c.nodes = static_cast<std::int32_t>(row.whole("nodes", 1, c.ranks));
  if (c.ranks % c.nodes != 0) row.fail("nodes", fmt::format("does not divide the {} ranks", c.ranks));
  read_shape(row, c);
  c.node_limit = static_cast<std::int32_t>(row.whole("node_limit", 0, kMaxNodes));
  read_distribution(row, c);
  c.payload = row.text("payload");
  try {
    static_cast<void>(row_bytes(c.payload, c.hidden));
  } catch (const Error& error) {
    row.fail("payload", error.what());
  }
  c.sms = static_cast<std::int32_t>(row.whole("sms", 0, 1024));
  // An all-to-all that knows no tokens sends room for all of them to every expert.
  if (c.regime == "nccl") {
    c.message_bytes = row_bytes(c.payload, c.hidden) * static_cast<double>(c.tokens_per_rank) *
                      static_cast<double>(c.experts);
  }
  c.measured_us = row.latency("latency_us");
  file.cases.push_back(std::move(c));
}

}  // namespace

MeasurementFile read_measurements(const std::string& path, const std::string& hardware) {
  const std::string text = detail::read_text_file(path);
  MeasurementFile file;
  file.path = path;
  file.sha256 = detail::sha256(text);
  if (text.starts_with("{")) {
    detail::read_bench_records(file, text);
    return file;
  }
  if (text.starts_with("#") || text.find("\n#") != std::string::npos) {
    detail::read_nccl_tests(file, text, hardware);
    return file;
  }
  std::istringstream stream(text);
  std::string line;
  std::getline(stream, line);
  if (!line.empty() && line.back() == '\r') line.pop_back();
  file.header = split(line);
  const CsvFormat& format = recognise(path, file.header);
  file.format = format.name;
  for (const std::string& name : format.latencies) {
    const auto at = std::find(file.header.begin(), file.header.end(), name) - file.header.begin();
    file.measured.push_back({format.latencies.size() > 1 ? name.substr(0, name.size() - 3) : std::string(),
                             static_cast<std::size_t>(at)});
  }
  if (file.format == "deepep_normal") {
    for (const std::string name : {"dispatch_notify", "combine_notify"}) {
      const auto at = std::find(file.header.begin(), file.header.end(), name + "_us") - file.header.begin();
      file.beside.push_back({name, static_cast<std::size_t>(at)});
    }
  }
  // Predictions stand beside their columns from left to right, and cases come in the same order.
  read_rows(file, stream);
  for (std::size_t i = 0; i < file.rows.size(); ++i) {
    const RowReader row(file, i);
    if (format.name == "published")
      read_published(file, row);
    else if (format.name == "trtllm")
      read_trtllm(file, row);
    else if (format.name == "nccl")
      read_nccl(file, row);
    else
      read_deepep(file, row, format.name == "deepep_normal");
  }
  return file;
}

}  // namespace shunt
