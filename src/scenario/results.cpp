#include <shunt/scenario/results.h>

#include <array>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <sstream>

#include <fmt/format.h>

#include <shunt/core/error.h>
#include <shunt/scenario/generate.h>
#include <shunt/scenario/nodes.h>

#include "commands.h"
#include "json.h"
#include "toml_reader.h"

namespace shunt::scenario {
namespace {

namespace fs = std::filesystem;

constexpr std::array kStatusNames = {"passed", "failed", "skipped", "interrupted", "not run"};

const std::optional<Scalar>* value_of(const Row& row, const std::string& key) {
  for (const auto& [name, value] : row)
    if (name == key) return &value;
  return nullptr;
}

std::optional<double> number_of(const Row& row, const std::string& key) {
  const std::optional<Scalar>* value = value_of(row, key);
  if (value == nullptr || !*value) return std::nullopt;
  if (const auto* whole = std::get_if<std::int64_t>(&**value)) return static_cast<double>(*whole);
  if (const auto* number = std::get_if<double>(&**value)) return *number;
  if (const auto* flag = std::get_if<bool>(&**value)) return *flag ? 1.0 : 0.0;
  return std::nullopt;
}

std::string text_of(const Row& row, const std::string& key) {
  const std::optional<Scalar>* value = value_of(row, key);
  return value == nullptr || !*value ? std::string() : to_text(**value);
}

std::vector<Row> rows_of_file(const std::string& path) {
  return parse_rows(detail::read_text_file(path), path);
}

/// Results of our benchmark, without the phases inside of phases.
std::vector<Row> own_rows(const std::string& folder) {
  const std::string path = folder + "/shunt.jsonl";
  std::vector<Row> rows;
  if (!fs::exists(path)) return rows;
  for (Row& row : rows_of_file(path))
    if (text_of(row, "record") == "result") rows.push_back(std::move(row));
  return rows;
}

/// A row of CloudAI's results.json out of one of ours.
Row exchange_row(const Case& one, const Row& ours, bool low_latency) {
  const TestDefinition& test = one.definition;
  const double ranks = number_of(ours, "ranks").value_or(1);
  const double nodes = number_of(ours, "nodes").value_or(1);
  const double bytes = number_of(ours, "bytes").value_or(0);
  Row row;
  const auto text = [&row](const char* key, std::string value) {
    row.emplace_back(key, Scalar(std::move(value)));
  };
  const auto whole = [&row](const char* key, double value) {
    row.emplace_back(key, Scalar(static_cast<std::int64_t>(value)));
  };
  const auto number = [&row](const char* key, std::optional<double> value) {
    row.emplace_back(key, std::nullopt);
    if (value) row.back().second.emplace(*value);
  };
  const auto bus = [&](const char* time) -> std::optional<double> {
    const auto us = number_of(ours, time);
    // What one rank sends, as nccl-tests counts an all-to-all: what stays on the rank crosses no link.
    if (!us || *us <= 0 || bytes <= 0 || ranks < 2) return std::nullopt;
    return bytes / ranks * (ranks - 1) / ranks / *us * 1e-3;
  };
  const auto us = number_of(ours, "median_us");
  const auto crossed = number_of(ours, "crossed_bytes");
  const double tokens = number_of(ours, "tokens_per_rank").value_or(0);
  const double hidden = number_of(ours, "hidden").value_or(0);
  std::optional<double> seconds;
  if (us) seconds = *us * 1e-6;
  text("backend", text_of(ours, "method") + (low_latency ? "_ll" : ""));
  text("operation", text_of(ours, "phase"));
  text("mode", low_latency ? "low_latency" : "standard");
  whole("num_ranks", ranks);
  whole("num_nodes", nodes);
  text("transport", text_of(ours, "transport"));
  row.emplace_back("allow_nvlink_for_low_latency", Scalar(test.flag("allow_nvlink_for_low_latency")));
  row.emplace_back("allow_mnnvl", Scalar(test.flag("allow_mnnvl")));
  text("data_type", test.text("data_type").empty() ? "bfloat16" : test.text("data_type"));
  whole("num_experts", static_cast<double>(test.whole("num_experts", 0)));
  whole("num_topk", static_cast<double>(test.whole("num_topk", 0)));
  // Both spellings of each generation.
  whole("num_tokens", tokens);
  whole("tokens", tokens);
  whole("hidden", hidden);
  whole("hidden_size", hidden);
  number("time_s", seconds);
  number("deepep_time", seconds);
  number("bus_bw_avg", bus("median_us"));
  number("bus_bw_min", bus("max_us"));
  number("bus_bw_max", bus("min_us"));
  number("global_bw", bytes > 0 ? number_of(ours, "gb_per_s") : std::nullopt);
  const bool network = nodes > 1 && crossed && us && *us > 0;
  number("simple_rdma_bw", network ? std::optional(*crossed / ranks / *us * 1e-3) : std::nullopt);
  for (const char* absent : {"simple_nvl_bw", "separate_rdma_bw", "separate_nvl_bw"})
    number(absent, std::nullopt);
  for (const char* key : {"median_us", "p90_us", "p99_us", "min_us", "max_us", "samples", "rounds"})
    number(key, number_of(ours, key));
  text("placement", text_of(ours, "placement"));
  return row;
}

std::vector<Row> exchange_rows(const Case& one, const std::string& folder, const std::string& stamp) {
  const TestDefinition& test = one.definition;
  const bool low_latency =
      test.text("mode") == "low_latency" || test.text("subtest_name") == "test_low_latency";
  std::vector<Row> rows;
  Json array = Json::array();
  const bool combine = test.find("benchmark_combine") == nullptr || test.flag("benchmark_combine");
  for (const Row& ours : own_rows(folder)) {
    const std::string phase = text_of(ours, "phase");
    if (phase != "dispatch" && !(phase == "combine" && combine)) continue;
    if (text_of(ours, "status") != "ok" || text_of(ours, "method") != "shunt") continue;
    rows.push_back(exchange_row(one, ours, low_latency));
    array.push_back(to_json(rows.back()));
  }
  if (rows.empty()) return rows;
  const std::string own =
      fmt::format("{}/benchmark_{}_ranks_{}_{}", folder, text_of(rows.front(), "num_ranks"), stamp,
                  low_latency ? "low_latency" : "standard");
  fs::create_directories(own);
  write_file(own + "/results.json", array.dump(2) + "\n");
  return rows;
}

/// Rows that a benchmark in a container has written: results/benchmark_*_ranks_*/results.json, or one level higher.
std::vector<Row> container_rows(const std::string& folder) {
  std::vector<Row> rows;
  for (const std::string& above : {folder, folder + "/results"}) {
    std::error_code ignored;
    for (const auto& entry : fs::directory_iterator(above, ignored)) {
      const std::string name = entry.path().filename().string();
      const std::string file = entry.path().string() + "/results.json";
      if (!name.starts_with("benchmark_") || !fs::exists(file)) continue;
      const std::size_t ranks = name.find("_ranks_");
      for (Row& row : rows_of_file(file)) {
        if (ranks != std::string::npos && value_of(row, "num_ranks") == nullptr)
          row.emplace_back("num_ranks", name.substr(10, ranks - 10));
        if (value_of(row, "mode") == nullptr)
          row.emplace_back("mode", name.ends_with("_low_latency") ? std::string("low_latency")
                                   : name.ends_with("_standard")  ? std::string("standard")
                                                                  : std::string("unknown"));
        // The time has two names in two generations.
        for (const auto& [from, to] : {std::pair{"time_s", "deepep_time"}, {"deepep_time", "time_s"}})
          if (const auto* value = value_of(row, from); value != nullptr && value_of(row, to) == nullptr)
            row.emplace_back(to, *value);
        rows.push_back(std::move(row));
      }
    }
  }
  return rows;
}

/// The lines of a table of nccl-tests.
std::vector<Row> nccl_rows(const std::string& text) {
  const std::vector<std::string> columns = {
      "size",           "count",          "type",          "redop", "root",
      "time_us",        "algbw",          "busbw",         "wrong", "in_place_time_us",
      "in_place_algbw", "in_place_busbw", "in_place_wrong"};
  std::vector<Row> rows;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words(line);
    std::vector<std::string> cells;
    for (std::string word; words >> word;) cells.push_back(word);
    if (cells.size() != columns.size() || cells[0].find_first_not_of("0123456789") != std::string::npos)
      continue;
    Row row;
    for (std::size_t i = 0; i < cells.size(); ++i) {
      const Json number = Json::parse(cells[i], nullptr, false);
      if (number.is_number())
        row.emplace_back(columns[i], to_scalar(number));
      else
        row.emplace_back(columns[i], cells[i] == "N/A" ? std::nullopt : std::optional<Scalar>(cells[i]));
    }
    rows.push_back(std::move(row));
  }
  return rows;
}

std::string output_of(const std::string& folder) {
  const std::string path = folder + "/stdout.txt";
  return fs::exists(path) ? detail::read_text_file(path) : std::string();
}

bool same_value(const Scalar& wanted, const std::optional<Scalar>& found) {
  if (!found) return false;
  const auto number = [](const Scalar& value) -> std::optional<double> {
    if (const auto* whole = std::get_if<std::int64_t>(&value)) return static_cast<double>(*whole);
    if (const auto* real = std::get_if<double>(&value)) return *real;
    return std::nullopt;
  };
  const auto a = number(wanted);
  const auto b = number(*found);
  return a && b ? *a == *b : to_text(wanted) == to_text(*found);
}

std::string unmet(const Expectation& expectation, const std::vector<Row>& rows) {
  std::int64_t seen = 0;
  std::string conditions;
  for (const auto& [key, value] : expectation.where)
    conditions += fmt::format("{}{} = {}", conditions.empty() ? " where " : ", ", key, to_quoted(value));
  for (const Row& row : rows) {
    bool fits = true;
    for (const auto& [key, value] : expectation.where) {
      const std::optional<Scalar>* found = value_of(row, key);
      fits = fits && found != nullptr && same_value(value, *found);
    }
    const auto value = number_of(row, expectation.metric);
    if (!fits || !value) continue;
    ++seen;
    double low = expectation.min.value_or(-INFINITY);
    double high = expectation.max.value_or(INFINITY);
    if (expectation.reference) {
      const double slack = std::abs(*expectation.reference) * expectation.tolerance_percent / 100;
      low = std::max(low, *expectation.reference - slack);
      high = std::min(high, *expectation.reference + slack);
    }
    if (!(*value >= low && *value <= high))
      return fmt::format("{} is {:.6g}{}, expected {}{}{}", expectation.metric, *value, conditions,
                         std::isfinite(low) ? fmt::format("at least {:.6g}", low) : "",
                         std::isfinite(low) && std::isfinite(high) ? " and " : "",
                         std::isfinite(high) ? fmt::format("at most {:.6g}", high) : "");
  }
  return seen > 0 ? std::string()
                  : fmt::format("no row of the results has a number {}{}", expectation.metric, conditions);
}

}  // namespace

const char* status_name(Status status) noexcept {
  return kStatusNames[static_cast<std::size_t>(status)];
}

Json to_json(const Scalar& value) {
  return std::visit([](const auto& one) { return Json(one); }, value);
}

std::optional<Scalar> to_scalar(const Json& value) {
  if (value.is_boolean()) return value.get<bool>();
  if (value.is_number_unsigned() && value.get<std::uint64_t>() > static_cast<std::uint64_t>(INT64_MAX))
    return value.get<double>();
  if (value.is_number_integer()) return value.get<std::int64_t>();
  if (value.is_number()) return value.get<double>();
  if (value.is_string()) return value.get<std::string>();
  return std::nullopt;
}

Json to_json(const Row& row) {
  Json object = Json::object();
  for (const auto& [key, value] : row) object[key] = value ? to_json(*value) : Json(nullptr);
  return object;
}

Row to_row(const Json& object) {
  Row row;
  for (const auto& [key, value] : object.items())
    if (value.is_null() || value.is_primitive()) row.emplace_back(key, to_scalar(value));
  return row;
}

Json read_json(const std::string& path) {
  const std::string text = detail::read_text_file(path);
  Json value = Json::parse(text, nullptr, false);
  if (value.is_discarded()) throw Error(Errc::io, fmt::format("{}: this is not JSON", path));
  return value;
}

std::vector<Row> parse_rows(std::string_view text, const std::string& name) {
  std::vector<Row> rows;
  const auto add = [&rows](const Json& value) {
    if (value.is_object()) rows.push_back(to_row(value));
  };
  const Json whole = Json::parse(text, nullptr, false);
  if (!whole.is_discarded()) {
    if (whole.is_array())
      for (const Json& item : whole) add(item);
    add(whole);
    return rows;
  }
  std::istringstream lines{std::string(text)};
  std::int64_t number = 0;
  for (std::string line; std::getline(lines, line);) {
    ++number;
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    const Json item = Json::parse(line, nullptr, false);
    if (item.is_discarded()) throw Error(Errc::io, fmt::format("{}:{}: this is not JSON", name, number));
    add(item);
  }
  return rows;
}

std::vector<Row> collect_rows(const Case& one, const TestEntry& entry, const System& system,
                              const std::string& folder, const std::string& stamp) {
  (void)entry;
  const bool local = system.scheduler == Scheduler::local || !in_container(one);
  switch (one.definition.workload) {
    case Workload::deepep_benchmark:
    case Workload::moe_benchmark:
    case Workload::deepep_scripts:
      return local ? exchange_rows(one, folder, stamp) : container_rows(folder);
    case Workload::nccl_test:
      return nccl_rows(output_of(folder));
    case Workload::shunt_all_to_all:
    case Workload::shunt_layer:
    case Workload::shunt_transport:
      return own_rows(folder);
    case Workload::shunt_plan:
      return {};
    case Workload::command: {
      const std::string name = one.definition.text("results");
      if (name.empty()) return {};
      const std::string path = (fs::path(folder) / name).string();
      if (!fs::exists(path))
        throw Error(Errc::io,
                    fmt::format("the command has not written {}, which cmd_args.results names", name));
      return rows_of_file(path);
    }
  }
  return {};
}

std::string judge(const Case& one, const std::vector<Row>& rows, const std::string& folder) {
  const TestDefinition& test = one.definition;
  if (test.workload == Workload::nccl_test) {
    const std::string text = output_of(folder);
    for (const char* sign : {"# Out of bounds values", "# Avg bus bandwidth"})
      if (text.find(sign) == std::string::npos)
        return fmt::format("stdout.txt has no line \"{}\", with which nccl-tests end", sign);
    const std::size_t at = text.find("# Out of bounds values");
    if (text.substr(at, text.find('\n', at) - at).find("OK") == std::string::npos)
      return "nccl-tests found wrong data";
    if (const Argument* least = test.find("min_busbw")) {
      const std::size_t colon = text.find(':', text.find("# Avg bus bandwidth"));
      const double average = colon == std::string::npos ? 0 : std::strtod(text.c_str() + colon + 1, nullptr);
      if (average < std::get<double>(least->values.front()))
        return fmt::format("the average bus bandwidth is {} GB/s, expected at least {}", average,
                           to_text(least->values.front()));
    }
  }
  for (const Expectation& expectation : test.expect)
    if (std::string why = unmet(expectation, rows); !why.empty()) return why;
  return {};
}

std::string fingerprint(const Case& one, const TestEntry& entry) {
  std::string text = fmt::format("{}|{}|{}|{}|{}|{}", one.id, one.num_nodes, one.iteration, one.step,
                                 entry.ranks_per_node, one.definition.template_name);
  for (const std::vector<Argument>* arguments : {&one.definition.cmd_args, &one.definition.env})
    for (const Argument& argument : *arguments) {
      text += "|" + argument.name + "=";
      for (const Scalar& value : argument.values) text += to_quoted(value);
    }
  for (const auto& [key, value] : one.definition.extra_cmd_args) text += "|" + key + "=" + value;
  for (const Expectation& expectation : one.definition.expect)
    text += fmt::format("|{} {} {} {} {}", expectation.metric, expectation.min.value_or(0),
                        expectation.max.value_or(0), expectation.reference.value_or(0),
                        expectation.tolerance_percent);
  text += one.definition.expect_failure ? "|failure" : "";
  // FNV-1a: it tells edited scenarios apart, nothing more.
  std::uint64_t hash = 14695981039346656037U;
  for (const char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 1099511628211U;
  return fmt::format("{:016x}", hash);
}

void write_case(const std::string& folder, const Finished& run) {
  Json json = {{"format", 1},
               {"label", run.label},
               {"id", run.id},
               {"iteration", run.iteration},
               {"step", run.step},
               {"name", run.name},
               {"template", run.template_name},
               {"folder", run.folder},
               {"fingerprint", run.fingerprint},
               {"status", status_name(run.status)},
               {"reason", run.reason},
               {"exit_code", run.exit_code},
               {"elapsed_s", run.elapsed_s},
               {"point", Json::object()},
               {"rows", Json::array()}};
  for (const auto& [key, value] : run.point) json["point"][key] = to_json(value);
  for (const Row& row : run.rows) json["rows"].push_back(to_json(row));
  write_file(folder + "/case.json",
             without_secrets(json.dump(2, ' ', false, Json::error_handler_t::replace)) + "\n");
}

std::optional<Finished> read_case(const std::string& folder) {
  const std::string path = folder + "/case.json";
  if (!fs::exists(path)) return std::nullopt;
  const Json json = read_json(path);
  Finished run;
  try {
    run.label = json.at("label").get<std::string>();
    run.id = json.at("id").get<std::string>();
    run.iteration = json.at("iteration").get<std::int64_t>();
    run.step = json.at("step").get<std::int64_t>();
    run.name = json.at("name").get<std::string>();
    run.template_name = json.at("template").get<std::string>();
    run.folder = json.at("folder").get<std::string>();
    run.fingerprint = json.at("fingerprint").get<std::string>();
    run.reason = json.at("reason").get<std::string>();
    run.exit_code = json.at("exit_code").get<std::int64_t>();
    run.elapsed_s = json.at("elapsed_s").get<double>();
    const auto status = json.at("status").get<std::string>();
    for (std::size_t i = 0; i < kStatusNames.size(); ++i)
      if (status == kStatusNames[i]) run.status = static_cast<Status>(i);
    for (const auto& [key, value] : json.at("point").items())
      if (const auto scalar = to_scalar(value)) run.point.emplace_back(key, *scalar);
    for (const Json& row : json.at("rows"))
      if (row.is_object()) run.rows.push_back(to_row(row));
  } catch (const Json::exception& error) {
    throw Error(Errc::io, fmt::format("{}: this is no record of a run: {}", path, error.what()));
  }
  return run;
}

}  // namespace shunt::scenario
