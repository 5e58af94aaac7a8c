#pragma once

#include <shunt/plan/report.h>

#include "commands.h"

namespace shunt::cli {

/// --format, which every planner command has.
void add_format(CLI::App& app, plan::Format& format);

void print_report(const plan::Report& report, plan::Format format);

void add_plan_affinity(CLI::App& parent, Command& command);
void add_plan_alltoall(CLI::App& parent, Command& command);
void add_plan_breakdown(CLI::App& parent, Command& command);
void add_plan_compare(CLI::App& parent, Command& command);
void add_plan_env(CLI::App& parent, Command& command);
void add_plan_grouping(CLI::App& parent, Command& command);
void add_plan_memory(CLI::App& parent, Command& command);
void add_plan_step(CLI::App& parent, Command& command);
void add_plan_run(CLI::App& parent, Command& command);
void add_plan_search(CLI::App& parent, Command& command);
void add_plan_schedule(CLI::App& parent, Command& command);
void add_plan_list_targets(CLI::App& parent, Command& command);

}  // namespace shunt::cli
