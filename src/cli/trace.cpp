#include <cstdint>
#include <memory>

#include <fmt/format.h>
#include <CLI/CLI.hpp>

#include <shunt/cluster/model_shape.h>
#include <shunt/core/error.h>
#include <shunt/routing/gate.h>
#include <shunt/routing/trace_stats.h>

#include "add_option.h"
#include "commands.h"

namespace shunt::cli {
namespace {

template <class... Args>
[[noreturn]] void refuse(fmt::format_string<Args...> text, Args&&... args) {
  throw Error(Errc::invalid_argument, fmt::format(text, std::forward<Args>(args)...));
}

struct Generate {
  std::string out, preset, routing, gate;
  std::int32_t experts = 0, top_k = 0, groups = 1, steps = 1;
  std::int64_t tokens = 1024;
  std::uint64_t seed = 17;
  double temperature = 1;
  TraceLogits logits;
  bool of_gate = false;  ///< One of the two was given
};

int generate(const Generate& given) {
  RoutingShape shape{given.tokens, given.groups, given.experts, given.top_k};
  if (!given.preset.empty()) {
    const ModelShape model = find_model_shape(given.preset, preset_directory());
    if (shape.num_experts == 0) shape.num_experts = model.num_experts;
    if (shape.top_k == 0) shape.top_k = model.top_k;
  }
  if (shape.num_experts == 0 || shape.top_k == 0)
    refuse("shunt trace generate needs --experts and --topk, or a --preset that has them");
  if (!given.gate.empty() && !given.routing.empty())
    refuse("--gate and --routing exclude each other: {} and {}", given.gate, given.routing);
  if (given.gate.empty() && given.of_gate)
    refuse(
        "--skew, --temperature, --router-arch, --hidden, --jitter, --noise and --balance-steps are for "
        "--gate; without it "
        "the routing says how tokens choose");
  Trace trace;
  if (given.gate.empty()) {
    const RoutingSpec spec = parse_routing(given.routing.empty() ? "uniform" : given.routing);
    trace = make_trace(spec, shape, given.seed, given.steps);
  } else {
    GateConfig gate = make_gate(given.gate, shape.num_experts, shape.top_k);
    gate.temperature = given.temperature;
    gate.seed = given.seed;
    trace = make_gate_trace(gate, shape, given.seed, given.steps, given.logits);
  }
  write_trace(given.out, trace);
  fmt::print("{}", format_trace_loads(trace, describe_trace(trace, TraceDetail::whole), {}));
  return 0;
}

struct Stats {
  std::string file, jsonl, each;
  std::vector<std::string> factors;
};

int stats(const Stats& given, const std::vector<std::string>& arguments) {
  std::vector<double> factors;
  for (const std::string& text : given.factors)
    factors.push_back(parse_number("--capacity-factors", text, 1e-6, 1e6));
  if (!given.each.empty() && given.each != "step" && given.each != "group")
    refuse("--each: \"{}\" is not allowed; allowed: step, group", given.each);
  const TraceDetail detail = given.each.empty()     ? TraceDetail::whole
                             : given.each == "step" ? TraceDetail::steps
                                                    : TraceDetail::groups;
  const Trace trace = read_trace(given.file);
  const std::vector<TraceLoad> loads = describe_trace(trace, detail, factors);
  if (!given.jsonl.empty()) {
    std::string lines = context_record(arguments).to_json() + "\n";
    for (const Record& record : trace_load_records(trace, loads, factors)) lines += record.to_json() + "\n";
    write_new_file(given.jsonl, lines);
  }
  fmt::print("{}", format_trace_loads(trace, loads, factors));
  return 0;
}

void add_generate(CLI::App& trace, Command& command) {
  CLI::App* app = trace.add_subcommand("generate", "Write a trace of synthetic routing");
  const auto typed = std::make_shared<Generate>();
  app->add_option("--out", typed->out, "Trace file; never overwritten")->required()->type_name("FILE");
  app->add_option("--preset", typed->preset, "Experts and top-k of a model shape")->type_name("NAME");
  add_whole(*app, "--experts", "Experts", typed->experts, 1, 1 << 20);
  add_whole(*app, "--topk", "Experts per token", typed->top_k, 1, 1 << 20);
  add_whole(*app, "--tokens", "Tokens of a group in a step (default 1024)", typed->tokens, 0, 1 << 24);
  add_whole(*app, "--groups", "Groups (ranks) of a step (default 1)", typed->groups, 1, 1 << 20);
  add_whole(*app, "--steps", "Steps (default 1)", typed->steps, 1, 1 << 20);
  app->add_option("--routing", typed->routing, "As of bench alltoall (default uniform)")
      ->type_name("ROUTING");
  app->add_option("--gate", typed->gate, "A gate of docs/routing.md on random logits instead")
      ->type_name("NAME");
  const auto of_gate = [app, typed](const char* name, const char* help, double& value, double least,
                                    double most) {
    add_text(*app, name, help, "X",
             [typed, &value, least, most](const std::string& option, const std::string& text) {
               typed->of_gate = true;
               value = parse_number(option, text, least, most);
             });
  };
  of_gate("--skew", "Deviation of what experts are liked, beside 1 of each token (default 0; gates)",
          typed->logits.skew, 0, 1e3);
  of_gate("--temperature", "Of the gate (default 1)", typed->temperature, 1e-6, 1e6);
  add_text(*app, "--router-arch",
           "Logits are what this network makes of normal tokens: linear, mlp, mlp-hadamard, cosine (gates)",
           "NAME", [typed](const std::string&, const std::string& text) {
             typed->of_gate = true;
             typed->logits.network = text;
           });
  add_text(*app, "--hidden", "Elements of those tokens (default 64; gates)", "N",
           [typed](const std::string& option, const std::string& text) {
             typed->of_gate = true;
             typed->logits.hidden = parse_whole(option, text, 1, 1 << 16);
           });
  of_gate("--jitter", "Factor in [1 - X, 1 + X) of what the network reads (default 0; gates)",
          typed->logits.jitter, 0, 0.999);
  of_gate("--noise", "Deviation of normal noise on the logits (default 0; gates)", typed->logits.noise, 0,
          1e6);
  add_text(*app, "--balance-steps",
           "Updates of the gate's bias towards even loads before each choice (default 0; gates)", "N",
           [typed](const std::string& option, const std::string& text) {
             typed->of_gate = true;
             typed->logits.balance_steps = parse_whole(option, text, 0, 1'000'000);
           });
  add_whole(*app, "--seed", "Of everything random (default 17)", typed->seed, 0, INT64_MAX);
  app->callback([&command, typed] { command = [typed] { return generate(*typed); }; });
}

}  // namespace

void add_trace(CLI::App& parent, const std::vector<std::string>& arguments, Command& command) {
  CLI::App* trace = parent.add_subcommand("trace", "Routing traces: make them, describe them");
  trace->require_subcommand(1);
  add_generate(*trace, command);
  CLI::App* app =
      trace->add_subcommand("stats", "How even a trace loads its experts, and what capacity drops");
  const auto typed = std::make_shared<Stats>();
  app->add_option("file", typed->file, "Trace")->required()->type_name("FILE");
  app->add_option("--each", typed->each, "Also a line for each step or group")->type_name("step|group");
  add_list(*app, "--capacity-factors", "Drop rates at these factors, of each group and step for itself",
           typed->factors);
  app->get_option("--capacity-factors")->type_name("X,...");
  app->add_option("--jsonl", typed->jsonl, "Record file; never overwritten")->type_name("FILE");
  app->callback(
      [&command, typed, &arguments] { command = [typed, &arguments] { return stats(*typed, arguments); }; });
}

}  // namespace shunt::cli
