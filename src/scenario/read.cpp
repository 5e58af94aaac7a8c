#include <shunt/scenario/read.h>

#include <algorithm>
#include <deque>
#include <filesystem>
#include <functional>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <shunt/core/error.h>
#include <shunt/core/nearest.h>
#include <shunt/scenario/nodes.h>

#include "merge.h"

namespace shunt::scenario {
namespace {

namespace fs = std::filesystem;
using detail::TomlReader;

std::vector<std::string> plus(std::vector<std::string> keys, const std::vector<std::string>& more) {
  keys.insert(keys.end(), more.begin(), more.end());
  return keys;
}

Place key_place(const std::string& path, const toml::table& table, const std::string& key) {
  const toml::node* node = table.get(key);
  return node == nullptr ? place_of(path, table) : place_of(path, *node);
}

/// Calls `read` and gives what it throws the place of a key.
template <class Read>
auto at_key(const std::string& path, const toml::table& table, const std::string& key, const Read& read) {
  try {
    return read();
  } catch (const Error& error) {
    if (error.code() != Errc::invalid_argument) throw;
    fail_at(key_place(path, table, key), fmt::format("{}: {}", key, error.what()));
  }
}

/// A path of a file counts from the file's folder.
std::string beside(const std::string& file, const std::string& path) {
  const fs::path given(path);
  return given.is_absolute() ? path : (fs::absolute(file).parent_path() / given).lexically_normal().string();
}

std::vector<std::string> texts(const TomlReader& reader, const std::string& path, const toml::table& table,
                               const std::string& key) {
  // The documentation of CloudAI's first generation has one text where the list is meant.
  if (reader.has(key) && table.get(key)->is_string()) return {reader.text(key)};
  (void)path;
  return reader.texts_or_none(key);
}

// ---- system

void read_partitions(const std::string& path, const toml::table& table, System& system) {
  const toml::node* node = table.get("partitions");
  if (node == nullptr) return;
  if (node->as_array() == nullptr)
    fail_at(place_of(path, *node), "partitions: expected [[partitions]] tables");
  for (const toml::node& item : *node->as_array()) {
    if (item.as_table() == nullptr) fail_at(place_of(path, item), "partitions: expected a table");
    const toml::table& one = *item.as_table();
    const TomlReader reader(path, one, {"name", "groups"}, "partitions.");
    Partition partition{.name = reader.text("name"), .groups = {}};
    if (const toml::node* groups = one.get("groups")) {
      if (groups->as_array() == nullptr) reader.fail("groups", "expected [[partitions.groups]] tables");
      for (const toml::node& entry : *groups->as_array()) {
        if (entry.as_table() == nullptr)
          fail_at(place_of(path, entry), "partitions.groups: expected a table");
        const TomlReader group(path, *entry.as_table(), {"name", "nodes"}, "partitions.groups.");
        NodeGroup found{.name = group.text("name"), .nodes = {}};
        at_key(path, *entry.as_table(), "nodes", [&] {
          for (const std::string& list : group.texts_or_none("nodes"))
            for (std::string& name : parse_node_list(list)) found.nodes.push_back(std::move(name));
        });
        partition.groups.push_back(std::move(found));
      }
    }
    system.partitions.push_back(std::move(partition));
  }
}

void read_global_env(const std::string& path, const toml::table& table, System& system) {
  const toml::node* node = table.get("global_env_vars");
  if (node == nullptr) return;
  if (node->as_table() == nullptr) fail_at(place_of(path, *node), "global_env_vars: expected a table");
  // merge_test has the rules for variables; the layer is a test of nothing but these.
  toml::table shell;
  shell.insert("name", "system");
  shell.insert("test_template_name", "Command");
  shell.insert("cmd_args", toml::table{{"command", "true"}});
  const Layer base{&path, &shell};
  toml::table only;
  only.insert("extra_env_vars", *node->as_table());
  const TestDefinition test = merge_test({Layer{&path, &only}, base}, place_of(path, *node));
  for (const Argument& variable : test.env) {
    if (variable.values.size() > 1)
      fail_at(place_of(path, *node), fmt::format("global_env_vars.{}: expected one text", variable.name));
    system.env.emplace_back(variable.name, to_text(variable.values.front()));
  }
}

// ---- scenario

struct Context {
  std::string tests_dir;
  std::vector<std::pair<std::string, std::string>> tests;  ///< name and file
  TimeStyle style = TimeStyle::strict;
};

const std::vector<std::string>& entry_keys() {
  static const std::vector<std::string> keys =
      plus({"id", "test_name", "num_nodes", "nodes", "exclude_nodes", "weight", "iterations", "sol",
            "ideal_perf", "time_limit", "dependencies", "extra_srun_args", "ranks_per_node"},
           test_keys());
  return keys;
}

void read_num_nodes(const std::string& path, const toml::table& table, TestEntry& entry) {
  constexpr std::int64_t kMost = 65536;
  const toml::node* node = table.get("num_nodes");
  if (node == nullptr) return;
  entry.num_nodes.clear();
  const auto add = [&](const toml::node& item) {
    auto value = item.value_exact<std::int64_t>();
    if (const auto text = item.value_exact<std::string>();
        text && !text->empty() && text->size() < 7 &&
        text->find_first_not_of("0123456789") == std::string::npos)
      value = std::stoll(*text);
    if (!value || *value < 0 || *value > kMost)
      fail_at(place_of(path, item),
              fmt::format(
                  "num_nodes: expected a whole number in [0, {}] (0 counts as 1), or a list of them to sweep",
                  kMost));
    entry.num_nodes.push_back(std::max<std::int64_t>(*value, 1));
  };
  if (const toml::array* array = node->as_array())
    for (const toml::node& item : *array) add(item);
  else
    add(*node);
  if (entry.num_nodes.empty()) fail_at(place_of(path, *node), "num_nodes: the list is empty");
}

void read_dependencies(const std::string& path, const toml::table& table, TestEntry& entry) {
  const toml::node* node = table.get("dependencies");
  if (node == nullptr) return;
  if (node->as_array() == nullptr)
    fail_at(place_of(path, *node), "dependencies: expected [[Tests.dependencies]] tables");
  const std::vector<std::string> types = {"start_post_comp", "start_post_init", "end_post_comp"};
  for (const toml::node& item : *node->as_array()) {
    if (item.as_table() == nullptr) fail_at(place_of(path, item), "dependencies: expected a table");
    const TomlReader reader(path, *item.as_table(), {"type", "id"}, "dependencies.");
    entry.dependencies.push_back(
        {static_cast<DependencyType>(reader.choice("type", types)), reader.text("id")});
  }
}

TestEntry read_entry(const std::string& path, const toml::table& table, const Context& context) {
  const TomlReader reader(path, table, entry_keys(), "Tests.");
  TestEntry entry;
  entry.place = place_of(path, table);
  entry.id = reader.text("id");
  // It is the name of a folder.
  if (entry.id == "." || entry.id == ".." || entry.id.find_first_of("/\\\n\r\t") != std::string::npos)
    reader.fail("id", "it names a folder, so it has no slash, no control character, and is neither . nor ..");
  read_num_nodes(path, table, entry);
  entry.nodes = texts(reader, path, table, "nodes");
  entry.exclude_nodes = texts(reader, path, table, "exclude_nodes");
  for (const char* key : {"nodes", "exclude_nodes"})
    at_key(path, table, key, [&] {
      for (const std::string& spec : key == std::string("nodes") ? entry.nodes : entry.exclude_nodes)
        if (spec.find(':') == std::string::npos) (void)parse_node_list(spec);
    });
  (void)reader.integer_or("weight", 0, 1'000'000, 0);
  (void)reader.number_or("sol", 0, 1e300, 0);
  (void)reader.number_or("ideal_perf", 0, 1e300, 1);
  entry.iterations = reader.integer_or("iterations", 1, 10'000, 1);
  entry.ranks_per_node = reader.integer_or("ranks_per_node", 1, 1024, 0);
  entry.extra_srun_args = reader.text_or("extra_srun_args", "");
  if (reader.has("time_limit"))
    entry.time_limit = at_key(path, table, "time_limit",
                              [&] { return parse_time_limit(reader.text("time_limit"), context.style); });
  read_dependencies(path, table, entry);
  if (!reader.has("test_name")) {
    entry.test = merge_test({Layer{&path, &table}}, place_of(path, table));
    return entry;
  }
  if (reader.has("test_template_name"))
    reader.fail("test_template_name",
                "a test has test_name, which names a file's test, or test_template_name, not both");
  const std::string name = reader.text("test_name");
  const auto file = std::find_if(context.tests.begin(), context.tests.end(),
                                 [&name](const auto& one) { return one.first == name; });
  if (file == context.tests.end()) {
    std::vector<std::string> names;
    for (const auto& one : context.tests) names.push_back(one.first);
    reader.fail(
        "test_name",
        names.empty()
            ? fmt::format("there is no test \"{}\", since {} has no test files", name, context.tests_dir)
            : fmt::format("there is no test \"{}\" in {}; did you mean \"{}\"? There are {}", name,
                          context.tests_dir, nearest_name(name, names), fmt::join(names, ", ")));
  }
  const toml::table base = detail::parse_toml(file->second);
  (void)TomlReader(file->second, base, test_keys());
  entry.test = merge_test({Layer{&path, &table}, Layer{&file->second, &base}}, place_of(path, table));
  return entry;
}

void check_graph(const std::vector<TestEntry>& tests) {
  std::vector<std::string> ids;
  for (const TestEntry& test : tests) {
    if (std::find(ids.begin(), ids.end(), test.id) != ids.end())
      fail_at(test.place, fmt::format("id \"{}\" is there twice", test.id));
    ids.push_back(test.id);
  }
  const auto index = [&ids](const std::string& id) {
    return static_cast<std::size_t>(std::find(ids.begin(), ids.end(), id) - ids.begin());
  };
  for (const TestEntry& test : tests)
    for (const Dependency& edge : test.dependencies) {
      if (edge.id == test.id) fail_at(test.place, fmt::format("test \"{}\" depends on itself", test.id));
      if (index(edge.id) == ids.size())
        fail_at(test.place,
                fmt::format("test \"{}\" depends on \"{}\", which is not there; did you mean \"{}\"?",
                            test.id, edge.id, nearest_name(edge.id, ids)));
    }
  // 1: on the way from the first, 2: done. end_post_comp says when a test ends, not when it starts, so it closes no circle.
  std::vector<int> seen(tests.size(), 0);
  std::vector<std::string> way;
  const std::function<void(std::size_t)> visit = [&](std::size_t at) {
    seen[at] = 1;
    way.push_back(ids[at]);
    for (const Dependency& edge : tests[at].dependencies) {
      if (edge.type == DependencyType::end_post_comp) continue;
      const std::size_t next = index(edge.id);
      if (seen[next] == 1) {
        way.erase(way.begin(), std::find(way.begin(), way.end(), edge.id));
        way.push_back(edge.id);
        fail_at(tests[at].place,
                fmt::format("the tests wait for each other in a circle: {}", fmt::join(way, " -> ")));
      }
      if (seen[next] == 0) visit(next);
    }
    way.pop_back();
    seen[at] = 2;
  };
  for (std::size_t i = 0; i < tests.size(); ++i)
    if (seen[i] == 0) visit(i);
}

/// The folder `name` beside that of the scenario, or the scenario's.
std::string folder_beside(const std::string& scenario, const std::string& name) {
  const fs::path own = fs::absolute(scenario).parent_path();
  const fs::path beside_it = own.parent_path() / name;
  std::error_code ignored;
  return (fs::is_directory(beside_it, ignored) ? beside_it : own).string();
}

std::vector<TestEntry> read_tests(const std::string& path, const toml::table& table, const TomlReader& reader,
                                  const Context& context) {
  const toml::node* node = table.get("Tests");
  if (node == nullptr || node->as_array() == nullptr || node->as_array()->empty())
    reader.fail("Tests", "a scenario needs at least one [[Tests]] table");
  constexpr std::size_t kMost = 10'000;
  if (node->as_array()->size() > kMost)
    reader.fail("Tests", fmt::format("there are more than {} tests", kMost));
  std::vector<TestEntry> tests;
  for (const toml::node& item : *node->as_array()) {
    if (item.as_table() == nullptr) fail_at(place_of(path, item), "Tests: expected [[Tests]] tables");
    tests.push_back(read_entry(path, *item.as_table(), context));
  }
  check_graph(tests);
  return tests;
}

const std::vector<std::string> kScenarioKeys = {
    "name", "sol_path", "job_status_check", "Tests", "pre_test", "post_test", "reports", "time_limit_style"};

TimeStyle style_of(const TomlReader& reader) {
  return static_cast<TimeStyle>(reader.choice_or("time_limit_style", {"strict", "cloudai", "slurm"}, 0));
}

std::vector<TestEntry> read_hook(const std::string& path, const toml::table& table, const std::string& key,
                                 const std::string& hook_dir) {
  const TomlReader outer(path, table, kScenarioKeys);
  if (!outer.has(key)) return {};
  const std::string name = outer.text(key);
  std::vector<std::string> names;
  std::error_code code;
  for (const auto& file : fs::directory_iterator(hook_dir, code)) {
    if (file.path().extension() != ".toml") continue;
    const std::string hook = file.path().string();
    const toml::table found = detail::parse_toml(hook);
    const auto own = found["name"].value<std::string>();
    if (!own || found.get("Tests") == nullptr) continue;
    names.push_back(*own);
    if (*own != name) continue;
    const TomlReader reader(hook, found, kScenarioKeys);
    Context context{
        .tests_dir = (fs::path(hook_dir) / "test").string(), .tests = {}, .style = style_of(reader)};
    if (!fs::is_directory(context.tests_dir, code)) context.tests_dir = hook_dir;
    context.tests = list_tests(context.tests_dir);
    return read_tests(hook, found, reader, context);
  }
  outer.fail(key, names.empty()
                      ? fmt::format("there is no hook \"{}\", since {} has no scenario", name, hook_dir)
                      : fmt::format("there is no hook \"{}\" in {}; did you mean \"{}\"?", name, hook_dir,
                                    nearest_name(name, names)));
}

}  // namespace

FileKind classify(const std::string& path) {
  const toml::table table = detail::parse_toml(path);
  if (table.get("scheduler") != nullptr) return FileKind::system;
  if (table.get("Tests") != nullptr) return FileKind::scenario;
  return table.get("test_template_name") != nullptr ? FileKind::test : FileKind::unknown;
}

System read_system(const std::string& path) {
  const toml::table table = detail::parse_toml(path);
  const std::vector<std::string> common = {
      "name",         "scheduler",       "install_path",     "output_path",
      "hf_home_path", "global_env_vars", "monitor_interval", "ranks_per_node"};
  const std::vector<std::string> slurm = {"default_partition",
                                          "partitions",
                                          "account",
                                          "distribution",
                                          "mpi",
                                          "gpus_per_node",
                                          "ntasks_per_node",
                                          "cache_docker_images_locally",
                                          "extra_srun_args",
                                          "extra_sbatch_args",
                                          "extra_transient_status_errors",
                                          "status_retry_pause_seconds",
                                          "container_mount_home",
                                          "data_repository",
                                          "reports"};
  System system;
  system.file = path;
  const TomlReader first(path, table, plus(common, slurm));
  // CloudAI's name for what runs without a scheduler is standalone.
  const std::size_t scheduler = first.choice("scheduler", {"slurm", "local", "standalone"});
  system.scheduler = scheduler == 0 ? Scheduler::slurm : Scheduler::local;
  const TomlReader reader(
      path, table,
      system.scheduler == Scheduler::slurm ? plus(common, slurm) : plus(common, {"gpus_per_node"}));
  system.name = reader.text("name");
  system.install_path = beside(path, reader.text_or("install_path", "install"));
  system.output_path = beside(path, reader.text_or("output_path", "results"));
  system.monitor_interval = reader.integer_or("monitor_interval", 1, 86'400, scheduler == 0 ? 60 : 1);
  system.gpus_per_node = reader.integer_or("gpus_per_node", 1, 1024, 0);
  system.ranks_per_node = reader.integer_or("ranks_per_node", 1, 1024, 0);
  read_global_env(path, table, system);
  if (system.scheduler == Scheduler::local) return system;
  system.default_partition = reader.text("default_partition");
  read_partitions(path, table, system);
  system.account = reader.text_or("account", "");
  system.distribution = reader.text_or("distribution", "");
  system.mpi = reader.text_or("mpi", "pmix");
  system.ntasks_per_node = reader.integer_or("ntasks_per_node", 1, 1024, 0);
  system.cache_docker_images_locally = reader.flag_or("cache_docker_images_locally", false);
  system.extra_srun_args = reader.text_or("extra_srun_args", "");
  system.extra_sbatch_args = reader.texts_or_none("extra_sbatch_args");
  system.transient_errors = reader.texts_or_none("extra_transient_status_errors");
  for (const std::string& pattern : system.transient_errors)
    if (pattern.find_first_not_of(" \t") == std::string::npos)
      reader.fail("extra_transient_status_errors", "a blank pattern would match every error");
  system.status_retry_pause_seconds = reader.integer_or("status_retry_pause_seconds", 0, 3600, 10);
  system.container_mount_home = reader.flag_or("container_mount_home", false);
  for (const auto& [key, text] : {std::pair{"default_partition", system.default_partition},
                                  {"account", system.account},
                                  {"distribution", system.distribution},
                                  {"mpi", system.mpi}})
    if (text.find_first_of(" \t\n\r\"'$`;&|<>()") != std::string::npos)
      reader.fail(key, "it goes into a batch script and may have no space, quote or other sign of the shell");
  for (const std::string& line : system.extra_sbatch_args)
    if (line.find_first_of("\n\r") != std::string::npos)
      reader.fail("extra_sbatch_args", "an argument is one line");
  if (system.extra_srun_args.find_first_of("\n\r") != std::string::npos)
    reader.fail("extra_srun_args", "arguments are one line");
  return system;
}

std::vector<std::pair<std::string, std::string>> list_tests(const std::string& folder) {
  std::vector<std::string> files;
  std::error_code code;
  for (const auto& file : fs::directory_iterator(folder, code))
    if (file.path().extension() == ".toml") files.push_back(file.path().string());
  std::sort(files.begin(), files.end());
  std::vector<std::pair<std::string, std::string>> tests;
  for (const std::string& file : files) {
    const toml::table table = detail::parse_toml(file);
    if (table.get("test_template_name") == nullptr || table.get("Tests") != nullptr) continue;
    const auto name = table["name"].value<std::string>();
    if (!name) fail_at({file, 0, 0}, "a test needs a name in quotes");
    const auto same =
        std::find_if(tests.begin(), tests.end(), [&name](const auto& one) { return one.first == *name; });
    if (same != tests.end())
      fail_at({file, 0, 0},
              fmt::format("there is a test \"{}\" in {} too; names must differ", *name, same->second));
    tests.emplace_back(*name, file);
  }
  std::sort(tests.begin(), tests.end());
  return tests;
}

TestDefinition read_test(const std::string& path) {
  const toml::table table = detail::parse_toml(path);
  (void)TomlReader(path, table, test_keys());
  return merge_test({Layer{&path, &table}}, place_of(path, table));
}

Scenario read_scenario(const std::string& path, const std::string& tests_dir, const std::string& hook_dir) {
  const toml::table table = detail::parse_toml(path);
  const TomlReader reader(path, table, kScenarioKeys);
  Scenario scenario;
  scenario.file = path;
  scenario.name = reader.text("name");
  if (scenario.name == "." || scenario.name == ".." ||
      scenario.name.find_first_of("/\\\n\r\t") != std::string::npos)
    reader.fail("name",
                "it names a folder, so it has no slash, no control character, and is neither . nor ..");
  scenario.job_status_check = reader.flag_or("job_status_check", true);
  Context context{.tests_dir = tests_dir.empty() ? folder_beside(path, "test") : tests_dir,
                  .tests = {},
                  .style = style_of(reader)};
  std::error_code ignored;
  if (!tests_dir.empty() && !fs::is_directory(tests_dir, ignored))
    throw Error(Errc::io, fmt::format("{}: this folder of tests does not exist", tests_dir));
  context.tests = list_tests(context.tests_dir);
  scenario.tests = read_tests(path, table, reader, context);
  const std::string hooks = hook_dir.empty() ? folder_beside(path, "hook") : hook_dir;
  scenario.pre_test = read_hook(path, table, "pre_test", hooks);
  scenario.post_test = read_hook(path, table, "post_test", hooks);
  return scenario;
}

}  // namespace shunt::scenario
