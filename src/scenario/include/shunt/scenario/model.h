#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include <shunt/scenario/time_limit.h>

namespace shunt::scenario {

/// One value of an argument.
using Scalar = std::variant<bool, std::int64_t, double, std::string>;

/// As a command line has it: true, 12, 0.5, text without quotes.
[[nodiscard]] std::string to_text(const Scalar& value);
/// As TOML and JSON have it: texts in quotes.
[[nodiscard]] std::string to_quoted(const Scalar& value);

/// Where something stands, for messages: "file:line:column", or a file alone.
struct Place {
  std::string file;
  std::int64_t line = 0;
  std::int64_t column = 0;
};

/// Errors: always Errc::io, with the place before `why`.
[[noreturn]] void fail_at(const Place& place, const std::string& why);

/// A value, or the values that a sweep takes in turn.
struct Argument {
  std::string name;
  std::vector<Scalar> values;
  bool list = false;  ///< The values are one list, not a sweep.
  Place place;
  [[nodiscard]] bool swept() const noexcept { return !list && values.size() > 1; }
};

/// What a test runs.
enum class Workload {
  deepep_benchmark,  ///< DeepEPBenchmark, and DeepEP up to CloudAI 1.6: config.yaml and results.json
  deepep_scripts,    ///< DeepEP from CloudAI 1.7 on: DeepEP's own test programs
  moe_benchmark,     ///< MoEBenchmark
  nccl_test,         ///< NcclTest
  shunt_all_to_all,  ///< ShuntAllToAll: shunt bench alltoall
  shunt_layer,       ///< ShuntLayer: shunt bench layer
  shunt_transport,   ///< ShuntTransport: shunt bench transport
  shunt_plan,        ///< ShuntPlan: shunt plan
  command,           ///< Command: any program
};

/// What a metric must be. Every row of the results that has the metric and fits `where` must pass.
struct Expectation {
  std::string metric;
  std::optional<double> min;
  std::optional<double> max;
  std::optional<double> reference;
  double tolerance_percent = 0;  ///< of the reference, to both sides
  std::vector<std::pair<std::string, Scalar>> where;
  Place place;
};

/// What is run, without where and how often.
struct TestDefinition {
  std::string name;
  std::string description;
  std::string template_name;
  Workload workload = Workload::command;
  std::vector<Argument> cmd_args;  ///< in the order of the template's keys, then others in that of the file
  std::vector<Argument> env;       ///< texts
  std::vector<std::pair<std::string, std::string>> extra_cmd_args;
  std::vector<std::string> extra_container_mounts;
  std::vector<std::string> nsys;  ///< words before the command; empty: no profiler
  bool expect_failure = false;    ///< The test passes if its command fails, and fails if it does not.
  std::vector<Expectation> expect;

  [[nodiscard]] const Argument* find(const std::string& argument) const noexcept;
  /// The first value of an argument as text, "" where it has none.
  [[nodiscard]] std::string text(const std::string& argument) const;
  [[nodiscard]] std::int64_t whole(const std::string& argument, std::int64_t otherwise) const;
  [[nodiscard]] bool flag(const std::string& argument) const;
};

enum class DependencyType { start_post_comp, start_post_init, end_post_comp };

struct Dependency {
  DependencyType type = DependencyType::start_post_comp;
  std::string id;
};

/// A test of a scenario.
struct TestEntry {
  std::string id;
  TestDefinition test;
  std::vector<std::int64_t> num_nodes = {1};  ///< more than one: a sweep
  std::vector<std::string> nodes;             ///< node specs; win over num_nodes
  std::vector<std::string> exclude_nodes;
  std::int64_t iterations = 1;
  std::optional<std::chrono::seconds> time_limit;
  std::vector<Dependency> dependencies;
  std::string extra_srun_args;
  std::int64_t ranks_per_node = 0;  ///< 0: the system's
  Place place;
};

struct Scenario {
  std::string name;
  std::string file;
  bool job_status_check = true;  ///< A failed test keeps its dependents from starting.
  std::vector<TestEntry> tests;
  std::vector<TestEntry> pre_test;   ///< tests of the hook scenario that must pass first
  std::vector<TestEntry> post_test;  ///< tests of the hook scenario that run afterwards
};

struct NodeGroup {
  std::string name;
  std::vector<std::string> nodes;  ///< one name each, ranges resolved
};

struct Partition {
  std::string name;
  std::vector<NodeGroup> groups;
};

enum class Scheduler { local, slurm };

/// Where tests run.
struct System {
  std::string name = "local";
  Scheduler scheduler = Scheduler::local;
  std::string install_path = "install";
  std::string output_path = "results";
  std::string default_partition;
  std::vector<Partition> partitions;
  std::string account;
  std::string distribution;
  std::string mpi = "pmix";
  std::int64_t gpus_per_node = 0;    ///< 0: not said
  std::int64_t ntasks_per_node = 0;  ///< 0: not said
  std::int64_t ranks_per_node = 0;   ///< of our own benchmarks; 0: gpus_per_node, or 2 where that is not said
  bool cache_docker_images_locally = false;
  std::string extra_srun_args;
  std::vector<std::string> extra_sbatch_args;
  std::vector<std::string> transient_errors;
  std::int64_t status_retry_pause_seconds = 10;
  std::int64_t monitor_interval = 60;  ///< seconds
  bool container_mount_home = false;
  std::vector<std::pair<std::string, std::string>> env;
  std::string file;
};

}  // namespace shunt::scenario
