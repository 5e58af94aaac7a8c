#include <memory>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <CLI/CLI.hpp>

#include <shunt/cluster/model.h>
#include <shunt/cluster/model_shape.h>
#include <shunt/cluster/parameters.h>
#include <shunt/cluster/volume.h>
#include <shunt/core/error.h>
#include <shunt/plan/affinity.h>

#include "add_option.h"
#include "cluster_options.h"
#include "plan.h"

namespace shunt::cli {
namespace {

struct Options {
  ClusterOptions cluster;
  plan::TopologyOptions topology;
  plan::ResidenceOptions residence;
  std::string model;
  std::string routing = "powerlaw:1.01";
  std::string dispatch = "fp8_block128";
  std::string combine = "bfloat16";
  std::int64_t tokens = 256;
  std::int64_t ep = 0;
  std::int64_t redundant = 0;
  std::int64_t seed = 17;
  std::vector<std::string> given;  ///< Options that only placements read
  bool shown = false;              ///< --show was given
  plan::Format format = plan::Format::text;
};

int place_experts(Options& o, const Machine& machine) {
  const ModelSpec model = find_model(o.model, preset_directory());
  if (model.experts == 0) throw Error(Errc::invalid_argument, fmt::format("{} has no experts", model.name));
  const std::int64_t ranks = o.ep == 0 ? machine.gpus() : o.ep;
  if (ranks > machine.gpus())
    throw Error(Errc::invalid_argument,
                fmt::format("--ep {}: the cluster has {} GPUs", ranks, machine.gpus()));
  plan::ResidenceOptions& r = o.residence;
  const std::int64_t domain = std::min(machine.domain(), ranks);
  r.shape.ranks = ranks;
  r.shape.nodes = std::max<std::int64_t>(1, ranks / domain);
  r.shape.groups = model.expert_groups;
  r.shape.places = model.experts + o.redundant;
  r.dispatch_row = row_bytes(o.dispatch, model.hidden);
  r.combine_row = row_bytes(o.combine, model.hidden);
  r.expert_bytes =
      static_cast<double>(model.moe_layers()) *
      static_cast<double>(mlp_parameters(model, model.expert_intermediate, model.expert_bias).total()) *
      weight_bits(model.expert_weights) / 8;
  const Router router(parse_routing(o.routing),
                      {o.tokens, static_cast<std::int32_t>(ranks), static_cast<std::int32_t>(model.experts),
                       static_cast<std::int32_t>(model.top_k)},
                      static_cast<std::uint64_t>(o.seed));
  std::vector<Routing> tokens;
  for (std::int64_t rank = 0; rank < ranks; ++rank)
    tokens.push_back(router.route(static_cast<std::int32_t>(rank)));
  plan::Report report = plan::report_residence(machine, tokens, r);
  report.head.set("model", model.name).set("routing", o.routing).set("seed", o.seed);
  print_report(report, o.format);
  return 0;
}

int run(Options o) {
  const Machine machine = cluster_of(o.cluster);
  if (o.model.empty()) {
    if (!o.given.empty())
      throw Error(Errc::invalid_argument,
                  fmt::format("{}: where experts should live needs --model", fmt::join(o.given, ", ")));
    print_report(plan::report_topology(machine, o.topology), o.format);
    return 0;
  }
  if (o.topology.from >= 0 || o.topology.to >= 0 || o.topology.ranks > 0 || o.shown)
    throw Error(Errc::invalid_argument,
                "--from, --to, --ranks and --show are for the way between ranks; leave --model out");
  return place_experts(o, machine);
}

}  // namespace

void add_plan_affinity(CLI::App& parent, Command& command) {
  const auto o = std::make_shared<Options>();
  CLI::App* app = parent.add_subcommand(
      "affinity", "Hops and rates between ranks; with --model, on which rank each expert should live");
  add_cluster(*app, o->cluster, "dgx-h100");
  add_whole(*app, "--ranks", "Ranks of the matrix (all, at most 256)", o->topology.ranks, 1, 1 << 22);
  add_text(*app, "--show", "Of the matrix: hops, gb_per_s or tier (hops)", "NAME",
           [o](const std::string&, const std::string& text) {
             o->topology.show = text;
             o->shown = true;
           });
  add_whole(*app, "--from", "One path, step by step: its first rank", o->topology.from, 0, 1 << 22);
  add_whole(*app, "--to", "Its last rank", o->topology.to, 0, 1 << 22);
  app->add_option("--model", o->model, "Places the experts of this model")->type_name("MODEL");
  const auto noted = [&](const char* name, const char* help, const char* type, auto set) {
    add_text(*app, name, help, type, [o, set](const std::string& option, const std::string& text) {
      set(option, text);
      o->given.push_back(option);
    });
  };
  noted("--ep", "Ranks that hold experts, from rank 0 (all GPUs)", "N",
        [o](const std::string& option, const std::string& text) {
          o->ep = parse_whole(option, text, 1, 1 << 16);
        });
  noted("--routing",
        "What tokens choose: uniform, powerlaw:A, grouped:G,T, trace:FILE, text:FILE (powerlaw:1.01)", "SPEC",
        [o](const std::string&, const std::string& text) {
          (void)parse_routing(text);
          o->routing = text;
        });
  noted("--tokens", "Tokens of each rank (256)", "N",
        [o](const std::string& option, const std::string& text) {
          o->tokens = parse_whole(option, text, 1, 1 << 16);
        });
  noted("--seed", "Of the routing (17)", "N", [o](const std::string& option, const std::string& text) {
    o->seed = parse_whole(option, text, 0, std::int64_t{1} << 62);
  });
  noted("--redundant-experts", "Copies beyond the first, for latency_balanced (0)", "N",
        [o](const std::string& option, const std::string& text) {
          o->redundant = parse_whole(option, text, 0, 1 << 16);
        });
  noted("--max-imbalance", "Load of a rank over the mean that affinity may make (1.1)", "X",
        [o](const std::string& option, const std::string& text) {
          o->residence.max_imbalance = parse_number(option, text, 1, 1e6);
        });
  noted("--path", "automatic, flat, hierarchical or rail_aligned (automatic)", "NAME",
        [o](const std::string&, const std::string& text) { o->residence.path = parse_exchange_path(text); });
  noted("--dispatch-payload", "bfloat16, fp8, fp8_block128, mxfp8, nvfp4, ... (fp8_block128)", "NAME",
        [o](const std::string&, const std::string& text) { o->dispatch = text; });
  noted("--combine-payload", "Of the results on their way back (bfloat16)", "NAME",
        [o](const std::string&, const std::string& text) { o->combine = text; });
  noted("--strategy", "Some of linear, round_robin, hash, locality, latency_balanced, affinity (all)",
        "NAME,...", [o](const std::string& option, const std::string& text) {
          o->residence.strategies = split_list(option, text);
        });
  add_format(*app, o->format);
  app->callback([&command, o] { command = [o] { return run(*o); }; });
}

}  // namespace shunt::cli
