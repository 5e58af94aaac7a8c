#include <memory>
#include <optional>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <CLI/CLI.hpp>

#include <shunt/alltoall/config.h>
#include <shunt/cluster/model_shape.h>
#include <shunt/cluster/volume.h>
#include <shunt/plan/exchange.h>

#include "add_option.h"
#include "cluster_options.h"
#include "plan.h"

namespace shunt::cli {
namespace {

struct Options {
  ClusterOptions cluster;
  plan::ExchangeOptions exchange;
  std::string model;
  std::string fit;
  bool tiers = false;
  plan::Format format = plan::Format::text;
};

/// What the library shunt::alltoall reserves on one rank.
double shunt_bytes(const plan::ShuntExchange& e) {
  AllToAllConfig config;
  config.max_tokens = e.tokens;
  config.num_experts = static_cast<std::int32_t>(e.experts);
  config.top_k = static_cast<std::int32_t>(e.top_k);
  config.hidden = e.hidden;
  config.path = e.hierarchical ? Path::hierarchical : Path::flat;
  config.presum = e.presum;
  if (e.fp8) {
    config.payload = DType::f8e4m3;
    config.scale = ScaleType::f32;
  }
  std::vector<std::int32_t> node_of;
  if (e.near < e.ranks)
    for (std::int64_t rank = 0; rank < e.ranks; ++rank)
      node_of.push_back(static_cast<std::int32_t>(rank / e.near));
  return static_cast<double>(workspace_size(config, static_cast<std::int32_t>(e.ranks), node_of).total());
}

/// Errors: as row_bytes, with the option in front.
void check_payload(const char* option, const std::string& payload) {
  try {
    (void)row_bytes(payload, 4096);
  } catch (const Error& error) {
    throw Error(error.code(), fmt::format("{}: {}", option, error.what()));
  }
}

int run(Options o) {
  for (const std::string& payload : o.exchange.dispatch_payloads)
    check_payload("--dispatch-payload", payload);
  check_payload("--combine-payload", o.exchange.combine_payload);
  o.exchange.shunt_bytes = shunt_bytes;
  const ModelSpec model = find_model(o.model, preset_directory());
  // As many hosts as the ranks need, where nobody says.
  const NodeSpec node = find_node(o.cluster.node, hardware_directory());
  if (o.cluster.hosts == 0 && o.cluster.gpus == 0)
    o.cluster.hosts = std::max<std::int64_t>(1, (o.exchange.ep + node.gpus - 1) / node.gpus);
  const Machine machine = cluster_of(o.cluster);
  std::optional<Calibration> calibration;
  std::optional<CostModel> fits;
  if (o.tiers && !o.fit.empty())
    throw Error(Errc::invalid_argument, "give --fit or --tiers, which uses no fit, not both");
  if (!o.tiers) {
    calibration = read_calibration(o.fit.empty() ? default_calibration_path() : o.fit);
    fits.emplace(*calibration, hardware_directory());
  }
  print_report(plan::report_exchange(model, machine, o.exchange, fits ? &*fits : nullptr), o.format);
  return 0;
}

}  // namespace

void add_plan_alltoall(CLI::App& parent, Command& command) {
  const auto o = std::make_shared<Options>();
  CLI::App* app = parent.add_subcommand(
      "alltoall", "Which library, path, precision and sizes for the exchange of an expert-parallel group");
  app->add_option("--model", o->model,
                  "Preset, TOML file, Hugging Face config.json, or a directory that holds one")
      ->type_name("MODEL")
      ->required();
  add_cluster(*app, o->cluster, "dgx-h100");
  plan::ExchangeOptions& e = o->exchange;
  add_whole(*app, "--ep", "Ranks that share the experts (8)", e.ep, 1, 1 << 16);
  add_whole(*app, "--tokens", "Tokens of one rank in a step (128)", e.tokens, 1, std::int64_t{1} << 40);
  add_whole(*app, "--redundant-experts", "Copies of experts, all ranks together (0)", e.redundant_experts, 0,
            1 << 20);
  add_list(*app, "--library", fmt::format("{} (all)", fmt::join(plan::exchange_libraries(), ", ")),
           e.libraries);
  add_list(*app, "--dispatch-payload",
           "Row types of the dispatch to compare (of bfloat16, fp8_block128, nvfp4 those that the GPU "
           "multiplies in)",
           e.dispatch_payloads);
  app->add_option("--combine-payload", e.combine_payload, "Row type of the combine (bfloat16)")
      ->type_name("NAME");
  add_whole(*app, "--sms", "Multiprocessors for kernels that take a number (what the library would take)",
            e.sms, 0, 1 << 20);
  add_text(*app, "--imbalance", "Load of the busiest rank over the mean (1)", "X",
           [o](const std::string& option, const std::string& text) {
             o->exchange.imbalance = parse_number(option, text, 0, 1e9);
           });
  app->add_flag_callback(
      "--not-overlapped", [o] { o->exchange.overlapped = false; },
      "Nothing computes beside it: DeepEP V2 then takes 64 multiprocessors or more");
  app->add_option("--fit", o->fit, "Fit file of shunt calibrate (the one that comes with Shunt)")
      ->type_name("FILE");
  app->add_flag("--tiers", o->tiers, "No fits: all times from bytes and rates");
  add_format(*app, o->format);
  app->callback([&command, o] { command = [o] { return run(*o); }; });
}

}  // namespace shunt::cli
