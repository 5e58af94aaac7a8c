#include <shunt/plan/params.h>

#include <cmath>

#include <fmt/format.h>

#include <shunt/cluster/parameters.h>

#include "weights.h"

namespace shunt::plan {
namespace {

std::string layer_text(const ModelSpec& model) {
  const auto layers = static_cast<std::int64_t>(model.layers.size());
  if (model.experts == 0) return fmt::format("{} layers", layers);
  return fmt::format("{} layers, {} with {} experts of which a token uses {}{}", layers, model.moe_layers(),
                     model.experts, model.top_k, model.shared_intermediate > 0 ? ", and shared experts" : "");
}

}  // namespace

Report report_parameters(const ModelSpec& model) {
  const ParameterCount count = count_parameters(model);
  const std::int64_t kv = kv_bytes_per_token(model, 2);
  const std::int64_t state = state_bytes_per_sequence(model);
  const std::int64_t expert =
      model.experts == 0 ? 0 : mlp_parameters(model, model.expert_intermediate, model.expert_bias).total();
  const std::int64_t active_experts = model.moe_layers() * model.top_k * expert;
  const double checkpoint = checkpoint_bytes(model, model.weights, model.expert_weights);
  Report report("plan_params");
  report.head.set("model", model.name)
      .set("description", model.description)
      .set("source", model.source)
      .set("layers", static_cast<std::int64_t>(model.layers.size()))
      .set("moe_layers", model.moe_layers())
      .set("dense_layers", model.dense_layers())
      .set("hidden", model.hidden)
      .set("vocab", model.vocab)
      .set("experts", model.experts)
      .set("topk", model.top_k)
      .set("total_parameters", count.total)
      .set("active_parameters", count.active)
      .set("active_parameters_without_embedding", count.active_without_input)
      .set("mtp_parameters", count.mtp)
      .set("total_parameters_with_mtp_copies", count.total + count.mtp + count.mtp_copies)
      .set("expert_parameters", expert)
      .set("kv_bytes_per_token", kv)
      .set("kv_window_tokens", model.window)
      .set("state_bytes_per_sequence", state)
      .set("weights", weight_format_names()[static_cast<std::size_t>(model.weights)])
      .set("expert_weights", weight_format_names()[static_cast<std::size_t>(model.expert_weights)])
      .set("weights_bytes", static_cast<std::int64_t>(std::llround(checkpoint)));
  report.summary = {
      fmt::format("{}: {}", model.name, model.description),
      fmt::format("{} parameters, {} active ({} without the embedding); {}", show_count(count.total),
                  show_short(count.active), show_short(count.active_without_input), layer_text(model)),
      fmt::format(
          "KV cache {} bytes per token in bf16{}{}; weights {} as published", show_count(kv),
          model.window > 0 ? fmt::format(" (part of the layers at most {} tokens)", show_count(model.window))
                           : "",
          state > 0 ? fmt::format(", and {} per sequence", show_bytes(static_cast<double>(state))) : "",
          show_bytes(checkpoint))};
  Table table{"parts",
              {{"part", "part"},
               {"parameters", "parameters", Unit::count},
               {"active_parameters", "active", Unit::count},
               {"share", "share", Unit::share}},
              {}};
  const auto row = [&](const char* part, std::int64_t all, std::int64_t active) {
    if (all == 0) return;
    table.rows.push_back(
        {std::string(part), all, active, static_cast<double>(all) / static_cast<double>(count.total)});
  };
  row("embedding", count.embedding, count.embedding);
  row("positions", count.positions, count.positions);
  row("attention", count.attention, count.attention);
  row("norms", count.norms, count.norms);
  row("dense_mlp", count.dense_mlp, count.dense_mlp);
  row("router", count.router, count.router);
  row("shared_experts", count.shared_experts, count.shared_experts);
  row("routed_experts", count.routed_experts, active_experts);
  row("output_head", count.output_head, count.output_head);
  row("total", count.total, count.active);
  report.tables.push_back(table);
  report.notes = model.notes;
  if (model.tied_embeddings) report.notes.emplace_back("the output head is the embedding");
  if (count.mtp > 0) {
    report.notes.push_back(
        fmt::format("{} for multi-token prediction come on top; checkpoints that store copies of "
                    "embedding and head with them hold {}",
                    show_count(count.mtp), show_count(count.total + count.mtp + count.mtp_copies)));
  }
  return report;
}

}  // namespace shunt::plan
