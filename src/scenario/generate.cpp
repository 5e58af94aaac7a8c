#include <shunt/scenario/generate.h>

#include <algorithm>
#include <cctype>
#include <filesystem>
#include <fstream>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <shunt/core/error.h>
#include <shunt/core/record.h>
#include <shunt/scenario/nodes.h>

#include "commands.h"
#include "shell.h"
#include "text.h"

namespace shunt::scenario {
namespace {

namespace fs = std::filesystem;

/// Characters that a name of a job may have without harm in a script.
std::string job_word(const std::string& name) {
  std::string word;
  for (const char c : name)
    word += std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_' || c == '-' || c == '.' ? c : '_';
  return word;
}

bool runs_cloudai_container(const Case& one, Workload workload) {
  return one.definition.workload == workload && in_container(one);
}

/// Variables of a case: the system's, then the test's in their place or behind, then those of the workload.
std::vector<std::pair<std::string, std::string>> variables(const Case& one, const System& system) {
  std::vector<std::pair<std::string, std::string>> all = system.env;
  const auto set = [&all](const std::string& name, const std::string& value) {
    const auto same =
        std::find_if(all.begin(), all.end(), [&name](const auto& pair) { return pair.first == name; });
    if (same == all.end())
      all.emplace_back(name, value);
    else
      same->second = value;
  };
  for (const Argument& variable : one.definition.env) set(variable.name, to_text(variable.values.front()));
  if (runs_cloudai_container(one, Workload::moe_benchmark)) {
    set("MASTER_ADDR", "$SLURM_JOB_MASTER_NODE");
    set("MASTER_PORT", "29500");
    if (needs_etcd(one)) set("NIXL_ETCD_ENDPOINTS", "\"$SLURM_JOB_MASTER_NODE:2379\"");
  }
  return all;
}

std::string variable(const std::vector<std::pair<std::string, std::string>>& all, const std::string& name) {
  for (const auto& [key, value] : all)
    if (key == name) return value;
  return {};
}

std::string image_of(const Case& one, const System& system) {
  std::string url = one.definition.text("docker_image_url");
  if (url.empty()) return url;
  std::error_code ignored;
  if (system.cache_docker_images_locally && !fs::is_regular_file(url, ignored)) {
    // Where the image has not been imported, Slurm's plugin fetches it; the name says which file is meant.
    return system.install_path + "/" + image_cache_name(url);
  }
  return url.front() == '.' ? fs::absolute(url).lexically_normal().string() : url;
}

/// Everything that srun is given before what only one of its calls needs.
std::string srun_prefix(const Case& one, const TestEntry& entry, const System& system, const Site& site,
                        const std::string& folder, bool with_nodes) {
  const bool single = one.definition.workload == Workload::nccl_test &&
                      !one.definition.text("subtest_name").ends_with("_mpi");
  std::string line = fmt::format("srun --export=ALL {}", single ? "--ntasks=1" : "--mpi=" + system.mpi);
  if (with_nodes && site.node_names.empty()) line += fmt::format(" -N{}", one.num_nodes);
  if (in_container(one)) {
    std::vector<std::string> mounts = {folder + ":/cloudai_run_results",
                                       system.install_path + ":/cloudai_install", folder};
    mounts.insert(mounts.end(), one.definition.extra_container_mounts.begin(),
                  one.definition.extra_container_mounts.end());
    const std::string results = one.definition.text("results_dir");
    if (one.definition.workload == Workload::deepep_benchmark)
      mounts.insert(mounts.end(), {folder + ":" + folder, folder + ":" + results});
    if (one.definition.workload == Workload::moe_benchmark)
      mounts.insert(mounts.end(), {folder + "/config.yaml:" + one.definition.text("config_file_path"),
                                   folder + ":" + results});
    const std::string topology = variable(variables(one, system), "NCCL_TOPO_FILE");
    if (!topology.empty()) mounts.push_back(topology + ":" + topology);
    line += fmt::format(" --container-image={} --container-mounts={}", shell_word(image_of(one, system)),
                        shell_word(fmt::format("{}", fmt::join(mounts, ","))));
    if (!system.container_mount_home) line += " --no-container-mount-home";
  }
  if (!system.extra_srun_args.empty()) line += " " + system.extra_srun_args;
  if (!entry.extra_srun_args.empty()) line += " " + entry.extra_srun_args;
  return line;
}

std::int64_t nodes_of(const Case& one, const Site& site) {
  return site.node_names.empty() ? one.num_nodes : static_cast<std::int64_t>(site.node_names.size());
}

bool ranks_by_srun(const Case& one) {
  switch (one.definition.workload) {
    case Workload::shunt_all_to_all:
    case Workload::shunt_transport:
    case Workload::shunt_layer:
      return true;
    case Workload::deepep_benchmark:
    case Workload::deepep_scripts:
    case Workload::moe_benchmark:
      return !in_container(one);
    default:
      return false;
  }
}

/// The command between the quotes of bash -c.
std::string test_command(const Case& one, const Site& site, const std::string& folder) {
  if (in_container(one)) return container_command(one, nodes_of(one, site), folder);
  std::string line;
  for (const std::string& word : one.definition.nsys) line += word + " ";
  return line + in_double_quotes(shell_words(job_command(one, site.shunt, folder)));
}

std::string main_srun(const Case& one, const TestEntry& entry, const System& system, const Site& site,
                      const std::string& folder) {
  const bool scripts = runs_cloudai_container(one, Workload::deepep_scripts);
  std::string line = srun_prefix(one, entry, system, site, folder, !scripts);
  if (scripts) line += fmt::format(" --nodes={0} --ntasks={0} --ntasks-per-node=1", nodes_of(one, site));
  if (ranks_by_srun(one)) line += fmt::format(" --ntasks-per-node={}", ranks_per_node(one, entry, system));
  const bool once =
      !in_container(one) &&
      (one.definition.workload == Workload::command || one.definition.workload == Workload::shunt_plan) &&
      entry.extra_srun_args.empty();
  // Programs that know nothing of Slurm run once on each node, and a plan once.
  if (once) line += one.definition.workload == Workload::shunt_plan ? " --ntasks=1" : " --ntasks-per-node=1";
  return line + fmt::format(" bash -c \"source {}; {}\"",
                            in_double_quotes(shell_word(folder + "/env_vars.sh")),
                            test_command(one, site, folder));
}

std::string etcd_srun(const Case& one, const TestEntry& entry, const System& system, const Site& site) {
  return srun_prefix(one, entry, system, site, site.folder, false) +
         fmt::format(
             " --output={} --overlap --ntasks-per-node=1 --ntasks=1 --nodelist=$SLURM_JOB_MASTER_NODE -N1 "
             "etcd "
             "--listen-client-urls=http://0.0.0.0:2379 "
             "--advertise-client-urls=http://$SLURM_JOB_MASTER_NODE:2379 "
             "--listen-peer-urls=http://0.0.0.0:2380 "
             "--initial-advertise-peer-urls=http://$SLURM_JOB_MASTER_NODE:2380 "
             "--initial-cluster=\"default=http://$SLURM_JOB_MASTER_NODE:2380\" --initial-cluster-state=new  "
             "&",
             shell_word(site.folder + "/etcd.log"));
}

/// The main srun of the MoE benchmark between the start and the end of etcd.
std::string with_etcd(const Case& one, const TestEntry& entry, const System& system, const Site& site,
                      const std::string& main) {
  return etcd_srun(one, entry, system, site) +
         "\netcd_pid=$!\n"
         "timeout 60 bash -c \"until curl -s $NIXL_ETCD_ENDPOINTS/health > /dev/null 2>&1; do sleep 1; "
         "done\" || {\n"
         "   echo \"ETCD ($NIXL_ETCD_ENDPOINTS) was unreachable after 60 seconds\";\n"
         "   exit 1\n"
         " }\n" +
         main +
         "\nkill -TERM $etcd_pid\n"
         " timeout 60 bash -c \"while kill -0 $etcd_pid 2>/dev/null; do sleep 1; done\" || {\n"
         "   echo \"Failed to kill ETCD (pid=$etcd_pid) within 60 seconds\";\n"
         "   exit 1\n"
         " }";
}

/// The case of a hook's test, which is no sweep.
Case hook_case(const TestEntry& entry) {
  Case one;
  one.id = entry.id;
  one.num_nodes = entry.num_nodes.front();
  one.definition = entry.test;
  return one;
}

std::string hook_srun(const Case& hook, const TestEntry& entry, const System& system, const Site& site,
                      const std::string& folder) {
  const std::string line = main_srun(hook, entry, system, site, folder);
  return fmt::format("srun --output={} --error={} {}", shell_word(folder + "/stdout.txt"),
                     shell_word(folder + "/stderr.txt"), line.substr(std::string_view("srun ").size()));
}

std::string hook_folder(const Site& site, const std::string& kind, const TestEntry& entry) {
  return fmt::format("{}/{}/{}", site.folder, kind, job_word(entry.test.name));
}

std::string with_hooks(const Scenario& scenario, const System& system, const Site& site,
                       const std::string& main) {
  if (scenario.pre_test.empty() && scenario.post_test.empty()) return main;
  std::vector<std::string> lines;
  const std::string indent = scenario.pre_test.empty() ? "" : "    ";
  std::string all;
  for (std::size_t i = 0; i < scenario.pre_test.size(); ++i) {
    const TestEntry& entry = scenario.pre_test[i];
    const Case hook = hook_case(entry);
    const std::string folder = hook_folder(site, "pre_test", entry);
    lines.push_back(hook_srun(hook, entry, system, site, folder));
    lines.push_back(fmt::format("SUCCESS_{}=$({})", i, success_check(hook, folder)));
    all += fmt::format("{}[ $SUCCESS_{} -eq 1 ]", all.empty() ? "" : " && ", i);
  }
  if (!all.empty()) {
    lines.push_back(fmt::format("PRE_TEST_SUCCESS=$( {} && echo 1 || echo 0 )", all));
    lines.emplace_back("if [ $PRE_TEST_SUCCESS -eq 1 ]; then");
  }
  lines.push_back(indent + main);
  // What follows must not hide how the test ended.
  lines.push_back(indent + "MAIN_STATUS=$?");
  for (const TestEntry& entry : scenario.post_test)
    lines.push_back(indent +
                    hook_srun(hook_case(entry), entry, system, site, hook_folder(site, "post_test", entry)));
  if (!all.empty()) lines.emplace_back("fi");
  lines.emplace_back("exit ${MAIN_STATUS:-1}");
  return fmt::format("{}", fmt::join(lines, "\n"));
}

std::string limit_with_hooks(const TestEntry& entry, const Scenario& scenario) {
  if (!entry.time_limit) return {};
  std::chrono::seconds total = *entry.time_limit;
  for (const std::vector<TestEntry>* hooks : {&scenario.pre_test, &scenario.post_test})
    for (const TestEntry& hook : *hooks) total += hook.time_limit.value_or(std::chrono::seconds(0));
  return format_time_limit(total);
}

void add_head_node(const Case& one, std::vector<std::string>& lines) {
  const bool scripts = runs_cloudai_container(one, Workload::deepep_scripts);
  if (!scripts && !runs_cloudai_container(one, Workload::deepep_benchmark)) return;
  for (const char* line :
       {"", "nodes=( $( scontrol show hostnames $SLURM_JOB_NODELIST ) )", "nodes_array=($nodes)",
        "head_node=${nodes_array[0]}",
        "head_node_ip=$(srun --nodes=1 --ntasks=1 -w \"$head_node\" hostname --ip-address)", "",
        "echo Nodes: $SLURM_JOB_NODELIST", "echo Num Nodes: ${#nodes[@]}", "echo Head Node IP: $head_node_ip",
        ""})
    lines.emplace_back(line);
  if (scripts)
    for (const char* line : {"export MASTER_ADDR=$head_node_ip", "export MASTER_PORT=29500", ""})
      lines.emplace_back(line);
}

std::string reservation_of(const System& system) {
  const std::string key = "--reservation ";
  const std::size_t at = system.extra_srun_args.find(key);
  if (at == std::string::npos) return {};
  const std::string rest = system.extra_srun_args.substr(at + key.size());
  return rest.substr(0, rest.find(' '));
}

std::string toml_values(const std::vector<Scalar>& values, bool list) {
  std::vector<std::string> words;
  for (const Scalar& value : values) words.push_back(to_quoted(value));
  return list ? fmt::format("[{}]", fmt::join(words, ", ")) : words.front();
}

/// A key of TOML, in quotes where it needs them.
std::string toml_key(const std::string& key) {
  const bool bare = !key.empty() && std::all_of(key.begin(), key.end(), [](unsigned char c) {
    return std::isalnum(c) != 0 || c == '_' || c == '-';
  });
  return bare ? key : in_quotes(key);
}

}  // namespace

std::string sbatch_script(const Case& one, const TestEntry& entry, const Scenario& scenario,
                          const System& system, const Site& site) {
  const std::string name = job_word(one.definition.name);
  std::vector<std::string> lines = {"#!/bin/bash", fmt::format("# generated by shunt@{}", version())};
  const auto directive = [&lines](const std::string& text) { lines.push_back("#SBATCH " + text); };
  directive(system.account.empty() ? fmt::format("--job-name={}_{}", name, site.stamp)
                                   : fmt::format("--job-name={}-{}.{}", system.account, name, site.stamp));
  directive("--output=" + shell_word(site.folder + "/stdout.txt"));
  directive("--error=" + shell_word(site.folder + "/stderr.txt"));
  directive("--partition=" + system.default_partition);
  if (!system.account.empty()) directive("--account=" + system.account);
  if (const std::string reservation = reservation_of(system); !reservation.empty())
    directive("--reservation=" + reservation);
  if (!system.distribution.empty()) directive("--distribution=" + system.distribution);
  if (site.node_names.empty()) {
    directive(fmt::format("-N {}", one.num_nodes));
    if (!entry.exclude_nodes.empty())
      directive(fmt::format("--exclude={}", fmt::join(entry.exclude_nodes, ",")));
  } else {
    directive(fmt::format("--nodelist={}", fmt::join(site.node_names, ",")));
  }
  if (system.gpus_per_node > 0 && site.gpu_directives) {
    directive(fmt::format("--gpus-per-node={}", system.gpus_per_node));
    directive(fmt::format("--gres=gpu:{}", system.gpus_per_node));
  }
  const std::int64_t tasks = ranks_by_srun(one) && system.ntasks_per_node == 0
                                 ? ranks_per_node(one, entry, system)
                                 : system.ntasks_per_node;
  if (tasks > 0) directive(fmt::format("--ntasks-per-node={}", tasks));
  if (const std::string limit = limit_with_hooks(entry, scenario); !limit.empty())
    directive("--time=" + limit);
  for (const std::string& argument : system.extra_sbatch_args) directive(argument);
  if (!site.node_names.empty())
    lines.push_back("export SLURM_HOSTFILE=" + shell_word(site.folder + "/hostfile.txt"));
  lines.emplace_back("");
  lines.emplace_back(
      "export SLURM_JOB_MASTER_NODE=$(scontrol show hostname $SLURM_JOB_NODELIST | head -n 1)");
  add_head_node(one, lines);
  const auto all = variables(one, system);
  for (const auto& [key, value] : all)
    lines.push_back(fmt::format("export {}={}", key, variable_value(value)));
  if (all.empty()) lines.emplace_back("");
  if (variable(all, "ENABLE_VBOOST") == "1") {
    lines.push_back(fmt::format(
        "srun --ntasks={} --output={} --error={} bash -c \"sudo nvidia-smi boost-slider --vboost 1\"",
        nodes_of(one, site), shell_word(site.folder + "/vboost.out"),
        shell_word(site.folder + "/vboost.err")));
    lines.emplace_back("");
  }
  const std::string prefix = srun_prefix(one, entry, system, site, site.folder, true);
  lines.push_back(fmt::format(
      "{} --output={} --error={} bash -c \"echo \\$(date): \\$(hostname):node \\${{SLURM_NODEID}}:rank "
      "\\${{SLURM_PROCID}}.\"",
      prefix, shell_word(site.folder + "/mapping-stdout.txt"),
      shell_word(site.folder + "/mapping-stderr.txt")));
  lines.emplace_back("");
  lines.push_back(
      fmt::format("{} --ntasks={} --ntasks-per-node=1 --output={} --error={} bash {}/slurm-metadata.sh",
                  prefix, nodes_of(one, site), shell_word(site.folder + "/metadata/node-%N.toml"),
                  shell_word(site.folder + "/metadata/nodes.err"),
                  in_container(one) ? "/cloudai_install" : shell_word(system.install_path)));
  lines.emplace_back("");
  std::string main = main_srun(one, entry, system, site, site.folder);
  if (runs_cloudai_container(one, Workload::moe_benchmark) && needs_etcd(one)) {
    main = with_etcd(one, entry, system, site, main);
  }
  lines.push_back(with_hooks(scenario, system, site, main));
  return fmt::format("{}", fmt::join(lines, "\n"));
}

std::string env_vars(const Case& one, const System& system) {
  std::string text;
  for (const auto& [key, value] : variables(one, system))
    text += fmt::format("export {}={}\n", key, variable_value(value, true));
  return text;
}

std::string hostfile(const System& system, const Site& site) {
  std::string text;
  for (const std::string& node : site.node_names)
    for (std::int64_t task = 0; task < std::max<std::int64_t>(system.ntasks_per_node, 1); ++task)
      text += node + "\n";
  return text;
}

std::string test_run_toml(const Case& one, const TestEntry& entry, const System& system, const Site& site,
                          const std::string& test_command, const std::string& full_command) {
  const TestDefinition& test = one.definition;
  std::vector<std::string> nodes;
  for (const std::string& node : entry.nodes) nodes.push_back(in_quotes(node));
  std::string text = fmt::format(
      "name = {}\nnnodes = {}\nnodes = [{}]\noutput_path = {}\niterations = {}\n"
      "current_iteration = {}\nstep = {}\ntest_cmd = {}\nfull_cmd = {}\n",
      in_quotes(one.id), nodes_of(one, site), fmt::join(nodes, ", "), in_quotes(site.folder),
      entry.iterations, one.iteration, one.step, in_quotes(test_command), in_quotes(full_command));
  text += fmt::format("\n[test_definition]\nname = {}\ndescription = {}\ntest_template_name = {}\n",
                      in_quotes(test.name), in_quotes(test.description), in_quotes(test.template_name));
  if (!test.extra_container_mounts.empty()) {
    std::vector<std::string> mounts;
    for (const std::string& mount : test.extra_container_mounts) mounts.push_back(in_quotes(mount));
    text += fmt::format("extra_container_mounts = [{}]\n", fmt::join(mounts, ", "));
  }
  text += "\n[test_definition.cmd_args]\n";
  for (const Argument& argument : test.cmd_args)
    text += fmt::format("{} = {}\n", toml_key(argument.name), toml_values(argument.values, argument.list));
  text += "\n[test_definition.extra_env_vars]\n";
  for (const Argument& argument : test.env)
    text += fmt::format("{} = {}\n", toml_key(argument.name), to_quoted(argument.values.front()));
  text += "\n[test_definition.extra_cmd_args]\n";
  for (const auto& [key, value] : test.extra_cmd_args)
    text += fmt::format("{} = {}\n", toml_key(key), in_quotes(value));
  (void)system;
  return text;
}

std::string slurm_job_toml(const std::vector<JobStep>& steps, const std::string& srun_command,
                           const std::string& test_command, const Site& site) {
  JobStep none;
  none.id = "0";
  none.name = "unknown";
  const JobStep& job = steps.empty() ? none : steps.front();
  const auto fields = [](const JobStep& step) {
    return fmt::format(
        "name = {}\nstate = {}\nstart_time = {}\nend_time = {}\nelapsed_time_sec = {}\nexit_code = {}\n",
        in_quotes(step.name), in_quotes(step.state), in_quotes(step.start), in_quotes(step.end),
        step.elapsed_s, in_quotes(step.exit_code));
  };
  std::string text =
      fmt::format("job_id = {}\n{}srun_cmd = {}\ntest_cmd = {}\nis_single_sbatch = false\njob_root = {}\n",
                  job.id.substr(0, job.id.find_first_of("._")), fields(job), in_quotes(srun_command),
                  in_quotes(test_command), in_quotes(site.folder));
  for (std::size_t i = 1; i < steps.size(); ++i) {
    const std::size_t dot = steps[i].id.find('.');
    text += fmt::format("\n[[job_steps]]\njob_id = {}\n{}step_id = {}\nsubmit_line = {}\n",
                        steps[i].id.substr(0, dot), fields(steps[i]),
                        in_quotes(dot == std::string::npos ? "" : steps[i].id.substr(dot + 1)),
                        in_quotes(steps[i].submit_line));
  }
  return text;
}

void write_file(const std::string& path, std::string_view text) {
  const std::string beside = path + ".new";
  {
    std::ofstream file(beside, std::ios::binary | std::ios::trunc);
    file << text;
    file.close();
    if (!file) throw Error(Errc::io, fmt::format("{}: cannot write this file", path));
  }
  std::error_code code;
  fs::rename(beside, path, code);
  if (code) throw Error(Errc::io, fmt::format("{}: cannot write this file: {}", path, code.message()));
}

SlurmFiles write_slurm_files(const Case& one, const TestEntry& entry, const Scenario& scenario,
                             const System& system, const Site& site) {
  std::error_code code;
  fs::create_directories(site.folder + "/metadata", code);
  if (!code) fs::create_directories(system.install_path, code);
  if (code)
    throw Error(Errc::io, fmt::format("{}: cannot make this folder: {}", site.folder, code.message()));
  write_file(system.install_path + "/slurm-metadata.sh", metadata_script());
  for (const auto& [hooks, kind] :
       {std::pair{&scenario.pre_test, "pre_test"}, {&scenario.post_test, "post_test"}})
    for (const TestEntry& hook : *hooks) {
      const std::string folder = hook_folder(site, kind, hook);
      fs::create_directories(folder, code);
      if (code) throw Error(Errc::io, fmt::format("{}: cannot make this folder: {}", folder, code.message()));
      const Case hooked = hook_case(hook);
      write_file(folder + "/env_vars.sh", env_vars(hooked, system));
      if (in_container(hooked) && (hooked.definition.workload == Workload::deepep_benchmark ||
                                   hooked.definition.workload == Workload::moe_benchmark))
        write_file(folder + "/config.yaml", config_yaml(hooked));
    }
  write_file(site.folder + "/env_vars.sh", env_vars(one, system));
  if (one.definition.workload == Workload::deepep_benchmark ||
      one.definition.workload == Workload::moe_benchmark)
    write_file(site.folder + "/config.yaml", config_yaml(one));
  if (!site.node_names.empty()) write_file(site.folder + "/hostfile.txt", hostfile(system, site));
  const std::string test = test_command(one, site, site.folder);
  const std::string srun = main_srun(one, entry, system, site, site.folder);
  write_file(site.folder + "/test-run.toml", test_run_toml(one, entry, system, site, test, srun));
  write_file(site.folder + "/slurm-job.toml", slurm_job_toml({}, srun, test, site));
  SlurmFiles files{
      .script = site.folder + "/cloudai_sbatch_script.sh", .srun_command = srun, .test_command = test};
  write_file(files.script, sbatch_script(one, entry, scenario, system, site));
  return files;
}

}  // namespace shunt::scenario
