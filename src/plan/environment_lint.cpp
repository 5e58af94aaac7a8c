#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <optional>
#include <sstream>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <shunt/core/error.h>
#include <shunt/core/nearest.h>
#include <shunt/plan/environment.h>

#include "environment_variables.h"

extern char** environ;

namespace shunt::plan {
namespace {

std::vector<std::string> split(std::string_view text, char separator) {
  std::vector<std::string> parts(1);
  for (const char c : text) {
    if (c == separator) {
      parts.emplace_back();
    } else {
      parts.back() += c;
    }
  }
  return parts;
}

std::string lower(std::string text) {
  for (char& c : text)
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  return text;
}

bool is_choice(const std::string& value, std::string_view choices) {
  for (const std::string& one : split(choices, ' '))
    if (lower(one) == lower(value)) return true;
  return false;
}

std::string comma(std::string_view choices) {
  std::string text;
  for (const char c : choices) text += c == ' ' ? std::string(", ") : std::string(1, c);
  return text;
}

std::optional<std::int64_t> integer(std::string_view text) {
  std::int64_t value = 0;
  const auto [end, code] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (code != std::errc{} || end != text.data() + text.size()) return {};
  return value;
}

bool plain_name(std::string_view name) {
  return !name.empty() && std::all_of(name.begin(), name.end(), [](char c) {
    return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_';
  });
}

std::string show(const Version& version) {
  return fmt::format("{}.{}", version.major, version.minor);
}

class Linter {
 public:
  Linter(const std::vector<Variable>& variables, const Versions& versions, std::string fabric)
      : variables_(variables), versions_(versions), fabric_(std::move(fabric)) {}

  std::vector<Finding> run() {
    for (std::size_t i = 0; i < variables_.size(); ++i) {
      for (std::size_t j = i + 1; j < variables_.size(); ++j)
        if (variables_[j].name == variables_[i].name) {
          add(Severity::warning, variables_[j].name,
              fmt::format("is set again, to \"{}\"; the last value counts", variables_[j].value));
          break;
        }
      check_one(variables_[i]);
    }
    check_nccl();
    check_network();
    check_efa();
    check_nvshmem();
    check_ucx();
    std::stable_sort(findings_.begin(), findings_.end(),
                     [](const Finding& a, const Finding& b) { return a.line < b.line; });
    return findings_;
  }

 private:
  [[nodiscard]] const Variable* find(std::string_view name) const {
    const auto it = std::find_if(variables_.rbegin(), variables_.rend(),
                                 [name](const Variable& v) { return v.name == name; });
    return it == variables_.rend() ? nullptr : &*it;
  }
  [[nodiscard]] bool is(std::string_view name, std::string_view value) const {
    const Variable* variable = find(name);
    return variable != nullptr && lower(variable->value) == lower(std::string(value));
  }
  [[nodiscard]] bool has(std::string_view name) const { return find(name) != nullptr; }
  [[nodiscard]] std::optional<std::int64_t> number(std::string_view name) const {
    const Variable* variable = find(name);
    return variable == nullptr ? std::nullopt : integer(variable->value);
  }

  void add(Severity severity, const std::string& name, const std::string& message) {
    const Variable* variable = find(name);
    findings_.push_back({severity, name, variable == nullptr ? 0 : variable->line, message});
  }

  /// Each variable with this prefix that is set, but for those in `except`.
  template <class Body>
  void each(std::string_view prefix, const std::vector<std::string>& except, const Body& body) {
    for (const Variable& v : variables_)
      if (v.name.starts_with(prefix) && std::find(except.begin(), except.end(), v.name) == except.end())
        body(v);
  }

  void check_one(const Variable& v) {
    if (!is_judged(v.name)) return;
    for (const Impostor& impostor : impostors())
      if (v.name == impostor.name) return add(Severity::error, v.name, impostor.message);
    const auto& known = known_variables();
    const auto it =
        std::find_if(known.begin(), known.end(), [&](const KnownVariable& k) { return v.name == k.name; });
    if (it == known.end()) return unknown(v);
    const Version version = v.name.starts_with("VLLM_") ? versions_.vllm : versions_.nccl;
    if (it->removed != Version{} && version >= it->removed)
      return add(Severity::error, v.name,
                 fmt::format("has had no effect since {}: {}", show(it->removed), it->note));
    if (it->since != Version{} && version < it->since)
      return add(Severity::error, v.name,
                 fmt::format("exists since {}, not in {}", show(it->since), show(version)));
    if (v.value.empty()) return add(Severity::warning, v.name, "is set to nothing");
    check_value(*it, v);
    if (it->deprecated != Version{} && version >= it->deprecated && it->note[0] != '\0')
      add(Severity::warning, v.name,
          fmt::format("is deprecated since {}; use {}", show(it->deprecated), it->note));
  }

  void unknown(const Variable& v) {
    std::vector<std::string> names;
    for (const KnownVariable& k : known_variables()) names.emplace_back(k.name);
    const std::string near = nearest_name(v.name, names);
    // The libraries have more variables than the tables; a near miss is a misspelling, anything else may exist.
    if (name_distance(v.name, near) <= 2) {
      add(Severity::error, v.name, fmt::format("is not known; did you mean {}?", near));
    } else {
      add(Severity::note, v.name, "is not among the variables that are known here");
    }
  }

  void check_value(const KnownVariable& known, const Variable& v) {
    if (known.kind == ValueKind::integer) {
      const auto value = integer(v.value);
      if (!value || *value < known.low || *value > known.high)
        add(Severity::error, v.name,
            fmt::format("\"{}\" is not an integer in [{}, {}]", v.value, known.low, known.high));
    } else if (known.kind == ValueKind::choice) {
      const bool level = v.name == "NCCL_P2P_LEVEL" || v.name == "NCCL_NET_GDR_LEVEL";
      const auto number = integer(v.value);
      if (level && number) return check_level(v, *number);
      if (!is_choice(v.value, known.choices))
        add(Severity::error, v.name, fmt::format("\"{}\" is none of {}", v.value, comma(known.choices)));
    } else if (known.kind == ValueKind::list) {
      check_list(known, v);
    }
  }

  void check_level(const Variable& v, std::int64_t value) {
    constexpr const char* kNames[] = {"LOC", "PIX", "PXB", "PHB", "SYS"};
    if (value < 0 || value > 4)
      return add(Severity::error, v.name, fmt::format("{} is none of the old numbers 0 to 4", value));
    const std::string name = kNames[value];
    const char* off = v.name == "NCCL_NET_GDR_LEVEL" && value == 0 ? ": GPUDirect RDMA is off" : "";
    add(Severity::warning, v.name,
        fmt::format("{} is an old number for {}{}; write the name", value, name, off));
  }

  void check_list(const KnownVariable& known, const Variable& v) {
    // Since 2.24 "allreduce:Ring;alltoall:^Tree" names functions.
    for (const std::string& function : split(v.value, ';')) {
      const std::size_t colon = function.find(':');
      if (colon != std::string::npos && versions_.nccl < Version{2, 24})
        return add(Severity::error, v.name, "values for single functions exist since 2.24");
      std::string items = colon == std::string::npos ? function : function.substr(colon + 1);
      const bool excludes = items.starts_with("^");
      if (excludes) items.erase(0, 1);
      for (const std::string& item : split(items, ','))
        if (!is_choice(item, known.choices))
          return add(Severity::error, v.name,
                     fmt::format("\"{}\" is none of {}", item, comma(known.choices)));
      const auto names = split(items, ',');
      const bool all = names.size() >= split(known.choices, ' ').size();
      if (v.name == "NCCL_PROTO" && all && !excludes) {
        add(Severity::note, v.name, "names every protocol, which is the default");
      } else if (v.name == "NCCL_PROTO" && !excludes &&
                 is_choice("LL128", fmt::format("{}", fmt::join(names, " ")))) {
        add(Severity::warning, v.name,
            "asks for LL128 everywhere: on hardware without 128 byte stores data may be damaged");
      } else if (v.name == "NCCL_ALGO" && !excludes) {
        check_algorithms(v, names);
      }
    }
  }

  void check_algorithms(const Variable& v, const std::vector<std::string>& names) {
    const std::vector<std::pair<const char*, Version>> since = {{"CollnetChain", {2, 14}},
                                                                {"CollnetDirect", {2, 14}},
                                                                {"NVLS", {2, 17}},
                                                                {"NVLSTree", {2, 18}},
                                                                {"PAT", {2, 23}}};
    for (const auto& [name, version] : since)
      if (versions_.nccl < version && is_choice(name, fmt::format("{}", fmt::join(names, " "))))
        add(Severity::error, v.name, fmt::format("{} exists since {}", name, show(version)));
    if (versions_.nccl >= Version{2, 24} && !is_choice("Ring", fmt::format("{}", fmt::join(names, " "))))
      add(Severity::warning, v.name,
          "since 2.24 there is no silent return to Ring: calls that these cannot serve fail");
  }

  void check_nccl() {
    if (is("NCCL_LAUNCH_MODE", "GROUP"))
      add(Severity::warning, "NCCL_LAUNCH_MODE", "GROUP is deprecated since 2.9; PARALLEL is the default");
    if (is("NCCL_MNNVL_ENABLE", "1") && fabric_ != "nvl72")
      add(Severity::warning, "NCCL_MNNVL_ENABLE",
          "1 ends the job where there is no multi-node NVLink; 2 uses it where it is");
    if (is("NCCL_MNNVL_ENABLE", "0") && fabric_ == "nvl72")
      add(Severity::error, "NCCL_MNNVL_ENABLE",
          "0 on nvl72 sends what NVLink could carry through the network cards");
    if (has("NCCL_MNNVL_ENABLE") && !is("NCCL_MNNVL_ENABLE", "0") && is("NCCL_CUMEM_ENABLE", "0"))
      add(Severity::error, "NCCL_CUMEM_ENABLE", "0 takes away what NCCL_MNNVL_ENABLE needs");
    if (is("NCCL_P2P_DISABLE", "1") && has("NCCL_P2P_LEVEL"))
      add(Severity::error, "NCCL_P2P_LEVEL", "has no effect beside NCCL_P2P_DISABLE=1");
    if (is("NCCL_P2P_DISABLE", "1") && (fabric_ == "nvlink" || fabric_ == "nvl72"))
      add(Severity::error, "NCCL_P2P_DISABLE", "1 takes NVLink away");
    if (is("NCCL_PXN_DISABLE", "1") && has("NCCL_P2P_PXN_LEVEL"))
      add(Severity::error, "NCCL_P2P_PXN_LEVEL", "has no effect beside NCCL_PXN_DISABLE=1");
    for (const char* pair : {"NCHANNELS", "CTAS"}) {
      const auto low = number(fmt::format("NCCL_MIN_{}", pair));
      const auto high = number(fmt::format("NCCL_MAX_{}", pair));
      if (low && high && *low > *high)
        add(Severity::error, fmt::format("NCCL_MIN_{}", pair),
            fmt::format("{} is above NCCL_MAX_{} {}", *low, pair, *high));
    }
    for (const char* end : {"MIN", "MAX"})
      if (has(fmt::format("NCCL_{}_NCHANNELS", end)) && has(fmt::format("NCCL_{}_CTAS", end)))
        add(Severity::error, fmt::format("NCCL_{}_NCHANNELS", end),
            fmt::format("is set beside its new name NCCL_{}_CTAS", end));
    const auto threads = number("NCCL_SOCKET_NTHREADS");
    const auto sockets = number("NCCL_NSOCKS_PERTHREAD");
    if (threads && sockets && *threads * *sockets > 64)
      add(Severity::error, "NCCL_NSOCKS_PERTHREAD",
          fmt::format("{} times NCCL_SOCKET_NTHREADS {} is above 64", *sockets, *threads));
  }

  void check_network() {
    const bool off = is("NCCL_IB_DISABLE", "1");
    if (off && (fabric_ == "ib" || fabric_ == "ethernet"))
      add(Severity::error, "NCCL_IB_DISABLE", fmt::format("1 on {}: NCCL falls back to TCP", fabric_));
    const bool socket = is("NCCL_NET", "Socket");
    if (off || socket || fabric_ == "efa") {
      const char* why =
          off ? "NCCL_IB_DISABLE=1" : (socket ? "NCCL_NET=Socket" : "EFA, which has no verbs of InfiniBand");
      each("NCCL_IB_", {"NCCL_IB_DISABLE"}, [&](const Variable& v) {
        add(Severity::warning, v.name, fmt::format("has no effect beside {}", why));
      });
    }
    const bool sockets_used = off || socket || fabric_.empty();
    if (!sockets_used)
      for (const char* name : {"NCCL_SOCKET_NTHREADS", "NCCL_NSOCKS_PERTHREAD"})
        if (has(name))
          add(Severity::warning, name, fmt::format("is for TCP and has no effect on {}", fabric_));
    if (fabric_ == "ib" && !off)
      for (const char* name : {"NCCL_IB_GID_INDEX", "NVSHMEM_IB_GID_INDEX", "UCX_IB_GID_INDEX"})
        if (has(name) && !is(name, "-1") && !is(name, "auto"))
          add(Severity::warning, name, "is for RoCE; InfiniBand takes the default");
    if (is("NCCL_CROSS_NIC", "1") && fabric_ == "ib")
      add(Severity::note, "NCCL_CROSS_NIC",
          "1 lets rings change rails; on a rail-optimised network 0 is faster");
  }

  void check_efa() {
    const bool efa = fabric_ == "efa" || is("FI_PROVIDER", "efa");
    if (has("RDMAV_FORK_SAFE"))
      add(Severity::error, "RDMAV_FORK_SAFE",
          "must not be set with EFA; FI_EFA_FORK_SAFE is for old kernels");
    if (has("FI_EFA_USE_DEVICE_RDMA") && versions_.libfabric >= Version{1, 18} &&
        versions_.aws_ofi_nccl >= Version{1, 7})
      add(Severity::note, "FI_EFA_USE_DEVICE_RDMA",
          "is not needed since libfabric 1.18 with aws-ofi-nccl 1.7");
    if (has("FI_EFA_FORK_SAFE"))
      add(Severity::note, "FI_EFA_FORK_SAFE", "is not needed on kernels from 5.15 on");
    if (has("FI_EFA_ENABLE_SHM_TRANSFER"))
      add(Severity::warning, "FI_EFA_ENABLE_SHM_TRANSFER", "has no effect under NCCL");
    if (!efa || versions_.aws_ofi_nccl <= Version{1, 5}) return;
    if (is("FI_PROVIDER", "efa"))
      add(Severity::note, "FI_PROVIDER", "is needed only by aws-ofi-nccl up to 1.5.0");
    if (is("NCCL_PROTO", "Simple"))
      add(Severity::warning, "NCCL_PROTO", "Simple is needed only by aws-ofi-nccl up to 1.5.0");
    for (const char* name : {"NCCL_BUFFSIZE", "NCCL_MIN_NCHANNELS"})
      if (has(name)) add(Severity::note, name, "is better left to the tuner of aws-ofi-nccl");
  }

  void check_nvshmem() {
    const bool mapping = is("NVSHMEM_ENABLE_NIC_PE_MAPPING", "1");
    for (const char* name : {"NVSHMEM_HCA_LIST", "NVSHMEM_HCA_PE_MAPPING"})
      if (has(name) && !mapping)
        add(Severity::error, name, "has no effect without NVSHMEM_ENABLE_NIC_PE_MAPPING=1");
    if (has("NVSHMEM_HCA_LIST") && has("NVSHMEM_HCA_PE_MAPPING"))
      add(Severity::error, "NVSHMEM_HCA_LIST", "contradicts NVSHMEM_HCA_PE_MAPPING; give one of them");
    const bool ibgda = is("NVSHMEM_IB_ENABLE_IBGDA", "1") || is("NVSHMEM_REMOTE_TRANSPORT", "ibgda");
    each("NVSHMEM_IBGDA_", {}, [&](const Variable& v) {
      if (!ibgda) add(Severity::warning, v.name, "has no effect without NVSHMEM_IB_ENABLE_IBGDA=1");
    });
    const bool libfabric = is("NVSHMEM_REMOTE_TRANSPORT", "libfabric");
    if (has("NVSHMEM_LIBFABRIC_PROVIDER") && !libfabric)
      add(Severity::error, "NVSHMEM_LIBFABRIC_PROVIDER",
          "has no effect without NVSHMEM_REMOTE_TRANSPORT=libfabric");
    if (libfabric && is("NVSHMEM_IB_ENABLE_IBGDA", "1"))
      add(Severity::error, "NVSHMEM_IB_ENABLE_IBGDA", "contradicts NVSHMEM_REMOTE_TRANSPORT=libfabric");
    if (fabric_ == "efa" && is("NVSHMEM_IB_ENABLE_IBGDA", "1"))
      add(Severity::error, "NVSHMEM_IB_ENABLE_IBGDA",
          "EFA has no IBGDA; NVSHMEM_REMOTE_TRANSPORT=libfabric reaches it");
    if (is("NVSHMEM_DISABLE_MNNVL", "1") && fabric_ == "nvl72")
      add(Severity::error, "NVSHMEM_DISABLE_MNNVL",
          "1 on nvl72 sends what NVLink could carry through the network cards");
    if (is("NVSHMEM_DISABLE_P2P", "1") && (fabric_ == "nvlink" || fabric_ == "nvl72"))
      add(Severity::error, "NVSHMEM_DISABLE_P2P", "1 takes NVLink away");
  }

  void check_ucx() {
    const Variable* tls = find("UCX_TLS");
    if (tls == nullptr || tls->value.starts_with("^") || lower(tls->value) == "all") return;
    if (tls->value.find("cuda") == std::string::npos)
      add(Severity::error, "UCX_TLS",
          fmt::format("\"{}\" has no cuda: GPU memory cannot be sent", tls->value));
  }

  const std::vector<Variable>& variables_;
  const Versions& versions_;
  std::string fabric_;
  std::vector<Finding> findings_;
};

}  // namespace

Version parse_version(std::string_view option, std::string_view text) {
  const auto parts = split(text, '.');
  std::vector<std::int64_t> numbers;
  for (const std::string& part : parts) {
    const auto value = integer(part);
    if (value && *value >= 0 && *value < 10000) numbers.push_back(*value);
  }
  if (numbers.size() != parts.size() || numbers.size() < 2 || numbers.size() > 4)
    throw Error(Errc::invalid_argument,
                fmt::format("{} \"{}\": expected a version like 2.27 or 2.27.3", option, text));
  return {static_cast<std::int32_t>(numbers[0]), static_cast<std::int32_t>(numbers[1])};
}

std::vector<Variable> parse_environment(std::string_view text, const std::string& path) {
  std::vector<Variable> variables;
  std::int64_t line = 0;
  for (std::string content : split(text, '\n')) {
    ++line;
    if (content.ends_with('\r')) content.pop_back();
    std::vector<std::string> words(1);
    char quote = 0;
    for (const char c : content) {
      if (quote == 0 && c == '#' && words.back().empty()) break;
      if (quote != 0 ? c == quote : (c == '"' || c == '\'')) {
        quote = quote == 0 ? c : '\0';
      } else if (quote == 0 && (c == ' ' || c == '\t' || c == ';')) {
        if (!words.back().empty()) words.emplace_back();
      } else {
        words.back() += c;
      }
    }
    if (words.back().empty()) words.pop_back();
    for (const std::string& word : words) {
      if (word == "export" || word == "-x" || word == "--env" || word == "-e" || word == "\\") continue;
      const std::size_t equals = word.find('=');
      if (equals == std::string::npos || !plain_name(std::string_view(word).substr(0, equals)) || quote != 0)
        throw Error(Errc::io, fmt::format("{}:{}: \"{}\" is not NAME=value", path, line, word));
      variables.push_back({word.substr(0, equals), word.substr(equals + 1), line});
    }
  }
  return variables;
}

std::vector<Variable> process_environment() {
  std::vector<Variable> variables;
  for (char** entry = environ; entry != nullptr && *entry != nullptr; ++entry) {
    const std::string_view text = *entry;
    const std::size_t equals = text.find('=');
    if (equals == std::string_view::npos || !is_judged(text.substr(0, equals))) continue;
    variables.push_back({std::string(text.substr(0, equals)), std::string(text.substr(equals + 1)), 0});
  }
  std::sort(variables.begin(), variables.end(),
            [](const Variable& a, const Variable& b) { return a.name < b.name; });
  return variables;
}

std::vector<Finding> lint(const std::vector<Variable>& variables, const Versions& versions,
                          const std::string& fabric) {
  return Linter(variables, versions, fabric).run();
}

Report report_lint(const std::vector<Finding>& findings, std::size_t variables) {
  constexpr const char* kNames[] = {"note", "warning", "error"};
  Report report("plan_env_lint");
  std::int64_t counts[3] = {0, 0, 0};
  Table table{"findings",
              {{"severity", "severity"}, {"line", "line"}, {"variable", "variable"}, {"message", "message"}},
              {}};
  for (const Finding& finding : findings) {
    const auto severity = static_cast<std::size_t>(finding.severity);
    ++counts[severity];
    table.rows.push_back({std::string(kNames[severity]), finding.line, finding.variable, finding.message});
  }
  report.head.set("variables", static_cast<std::int64_t>(variables))
      .set("errors", counts[2])
      .set("warnings", counts[1])
      .set("remarks", counts[0]);
  report.summary.push_back(fmt::format("{} variables: {} errors, {} warnings, {} notes", variables, counts[2],
                                       counts[1], counts[0]));
  report.tables.push_back(table);
  return report;
}

}  // namespace shunt::plan
