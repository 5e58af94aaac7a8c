#include <cmath>
#include <cstdlib>
#include <map>
#include <sstream>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <shunt/cluster/volume.h>
#include <shunt/core/error.h>

#include "measurement_file.h"

// Measurements that are not CSV: records of shunt bench alltoall, and what the programs of nccl-tests print.

namespace shunt::detail {
namespace {

using nlohmann::json;

template <class T>
T field(const json& record, const char* key, const std::string& path, std::int64_t line) {
  const auto it = record.find(key);
  if (it == record.end()) fail_at(path, line, fmt::format("the record has no \"{}\"", key));
  try {
    return it->get<T>();
  } catch (const json::exception&) {
    fail_at(path, line, fmt::format("\"{}\" is {}, which is of another type than expected", key, it->dump()));
  }
}

std::string payload_of(const std::string& dtype, const std::string& path, std::int64_t line) {
  static const std::map<std::string, std::string> names = {{"float32", "float"},
                                                           {"float16", "half"},
                                                           {"bfloat16", "bfloat16"},

                                                           {"float8_e4m3fn", "fp8_block128"},

                                                           {"float8_e5m2", "fp8_block128"}};
  const auto it = names.find(dtype);
  if (it == names.end()) fail_at(path, line, fmt::format("the element type \"{}\" is not known", dtype));
  return it->second;
}

}  // namespace

void read_bench_records(MeasurementFile& file, const std::string& text) {
  file.format = "bench";
  file.header = {"method", "transport", "placement", "op", "ranks", "nodes", "tokens_per_rank", "median_us"};
  file.measured = {{std::string(), 7}};
  std::istringstream stream(text);
  std::string line;
  std::string hardware;
  for (std::int64_t number = 1; std::getline(stream, line); ++number) {
    if (line.empty()) continue;
    const json record = json::parse(line, nullptr, false);
    if (record.is_discarded() || !record.is_object())
      fail_at(file.path, number, "this line is not a JSON object");
    const auto kind = field<std::string>(record, "record", file.path, number);
    if (number == 1) {
      if (kind != "context" || field<std::int64_t>(record, "format", file.path, number) != 1)
        fail_at(file.path, number, "expected a context record of format 1");
      hardware =
          record.contains("cpu_model") ? field<std::string>(record, "cpu_model", file.path, number) : "host";
      continue;
    }
    if (kind != "result" || field<std::string>(record, "bench", file.path, number) != "alltoall") continue;
    if (field<std::string>(record, "status", file.path, number) != "ok") continue;
    // Floors move no tokens, or not from rank to rank.
    const auto method = field<std::string>(record, "method", file.path, number);
    if (method == "empty" || method == "xcopy" || method == "reduce" || method == "memcpy") continue;
    const auto phase = field<std::string>(record, "phase", file.path, number);
    if (phase != "dispatch" && phase != "combine" && phase != "total") continue;
    CostCase c;
    c.regime = "host";
    c.op = phase;
    const auto transport = field<std::string>(record, "transport", file.path, number);
    const auto placement = field<std::string>(record, "placement", file.path, number);
    c.variant = fmt::format("{} {} {}", method, transport, placement);
    c.hardware = hardware;
    c.ranks = field<std::int32_t>(record, "ranks", file.path, number);
    c.nodes = field<std::int32_t>(record, "nodes", file.path, number);
    c.hidden = field<std::int64_t>(record, "hidden", file.path, number);
    c.experts = field<std::int64_t>(record, "experts", file.path, number);
    c.topk = field<std::int64_t>(record, "topk", file.path, number);
    c.tokens_per_rank = field<std::int64_t>(record, "tokens_per_rank", file.path, number);
    const char* dtype = phase == "combine" ? "out_dtype" : "in_dtype";
    c.payload = payload_of(field<std::string>(record, dtype, file.path, number), file.path, number);
    c.measured_us = field<double>(record, "median_us", file.path, number);
    if (c.ranks < 1 || c.nodes < 1 || c.ranks % c.nodes != 0 || c.hidden < 1 || c.experts < 1 || c.topk < 1 ||
        c.topk > c.experts || c.tokens_per_rank < 0)
      fail_at(file.path, number, "ranks, nodes, experts, topk, hidden or tokens_per_rank are impossible");
    if (!(c.measured_us > 0) || c.measured_us > kMaxLatencyUs)
      fail_at(file.path, number,
              fmt::format("median_us {}: expected more than 0 and at most {}", c.measured_us, kMaxLatencyUs));
    c.where = fmt::format("{}:{}", file.path, number);
    file.rows.push_back({method, transport, placement, phase, fmt::format("{}", c.ranks),
                         fmt::format("{}", c.nodes), fmt::format("{}", c.tokens_per_rank),
                         fmt::format("{}", c.measured_us)});
    file.lines.push_back(number);
    file.cases.push_back(std::move(c));
  }
}

void read_nccl_tests(MeasurementFile& file, const std::string& text, const std::string& hardware) {
  if (hardware.empty()) {
    throw Error(
        Errc::invalid_argument,
        fmt::format("{}: output of nccl-tests does not name the machine; say --hardware NAME", file.path));
  }
  file.format = "nccl-tests";
  file.header = {"op", "dtype", "gpus", "message_elements", "latency_us"};
  file.measured = {{std::string(), 4}};
  static const std::map<std::string, std::string> ops = {{"all_gather", "all_gather"},
                                                         {"reduce_scatter", "reduce_scatter"},
                                                         {"alltoall", "alltoall"},
                                                         {"all_reduce", "all_reduce"}};
  static const std::map<std::string, double> sizes = {
      {"int8", 1},   {"uint8", 1}, {"half", 2},  {"bfloat16", 2}, {"int32", 4},
      {"uint32", 4}, {"float", 4}, {"int64", 8}, {"uint64", 8},   {"double", 8}};
  std::istringstream stream(text);
  std::string line;
  std::string op;
  std::string version;
  std::int32_t ranks = 0;
  for (std::int64_t number = 1; std::getline(stream, line); ++number) {
    std::istringstream words(line);
    std::vector<std::string> cells;
    for (std::string word; words >> word;) cells.push_back(word);
    if (cells.empty()) continue;
    if (cells[0].starts_with("#")) {
      if (const auto at = line.find("Collective test starting: "); at != std::string::npos) {
        op = line.substr(at + 26);
        op = op.substr(0, op.find("_perf"));
        if (!ops.contains(op))
          fail_at(file.path, number, fmt::format("the operation \"{}\" has no formula", op));
      }
      if (cells.size() > 2 && cells[1] == "Rank") ranks += 1;
      if (cells.size() > 3 && cells[1] == "nccl-tests" && line.find("nccl-library") != std::string::npos)
        version = "nccl-tests";
      continue;
    }
    // size count type redop root time algbw busbw #wrong …: out of place first
    if (cells.size() < 8 || cells[0].find_first_not_of("0123456789") != std::string::npos) continue;
    if (op.empty())
      fail_at(file.path, number,
              "no line \"# Collective test starting: NAME_perf\" above this one says what was measured");
    if (ranks < 2) fail_at(file.path, number, "fewer than two lines \"#  Rank\" above this one");
    const auto size = sizes.find(cells[2]);
    if (size == sizes.end())
      fail_at(file.path, number, fmt::format("the type \"{}\" is not known", cells[2]));
    char* end = nullptr;
    const double us = std::strtod(cells[5].c_str(), &end);
    if (*end != '\0' || !(us > 0) || us > kMaxLatencyUs)
      fail_at(file.path, number,
              fmt::format("time \"{}\": expected more than 0 and at most {}", cells[5], kMaxLatencyUs));
    CostCase c;
    c.regime = "nccl";
    c.op = op;
    c.hardware = hardware;
    c.collected_with = version;
    c.ranks = ranks;
    c.payload = size->second == 1 ? "int8" : size->second == 2 ? "half" : "float";
    c.message_bytes = std::strtod(cells[0].c_str(), nullptr);
    if (!(c.message_bytes > 0)) continue;
    c.measured_us = us;
    c.where = fmt::format("{}:{}", file.path, number);
    file.rows.push_back({op, cells[2], fmt::format("{}", ranks),
                         fmt::format("{}", c.message_bytes / size->second), cells[5]});
    file.lines.push_back(number);
    file.cases.push_back(std::move(c));
  }
  if (file.cases.empty()) fail_at(file.path, 1, "no result of nccl-tests in this file");
}

}  // namespace shunt::detail
