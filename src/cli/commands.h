#pragma once

#include <functional>
#include <string>
#include <vector>

namespace CLI {
class App;
}

namespace shunt::cli {

/// What the chosen subcommand runs; returns the exit status.
using Command = std::function<int()>;

/// Each adds its subcommand to `parent`; when that was given, parsing stores what to run in `command`.
void add_bench_alltoall(CLI::App& parent, const std::vector<std::string>& arguments, Command& command);
void add_bench_layer(CLI::App& parent, const std::vector<std::string>& arguments, Command& command);
void add_bench_overlap(CLI::App& parent, const std::vector<std::string>& arguments, Command& command);
void add_bench_pack(CLI::App& parent, const std::vector<std::string>& arguments, Command& command);
void add_bench_routing(CLI::App& parent, const std::vector<std::string>& arguments, Command& command);
void add_bench_transport(CLI::App& parent, const std::vector<std::string>& arguments, Command& command);
void add_calibrate(CLI::App& parent, Command& command);
void add_doctor(CLI::App& parent, Command& command);
void add_plan(CLI::App& parent, Command& command);
void add_predict(CLI::App& parent, Command& command);
void add_scenario(CLI::App& parent, Command& command);
void add_sweep(CLI::App& parent, const std::vector<std::string>& arguments, Command& command);
void add_trace(CLI::App& parent, const std::vector<std::string>& arguments, Command& command);

}  // namespace shunt::cli
