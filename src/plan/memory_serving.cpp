#include <algorithm>
#include <cmath>

#include <shunt/cluster/parameters.h>

#include "stage.h"
#include "weights.h"

namespace shunt::plan {
namespace {

double as_double(std::int64_t value) {
  return static_cast<double>(value);
}

std::int64_t round_up(std::int64_t value, std::int64_t to) {
  return ceil_div(value, to) * to;
}

void check(const ModelSpec& model, const Layout& layout, const ServingOptions& o) {
  check_range<std::int64_t>("max sequences", o.max_sequences, 1, 1 << 20);
  check_range<std::int64_t>("max length", o.max_length, 1, 1 << 26);
  check_range<std::int64_t>("batch tokens", o.batch_tokens, 1, 1 << 24);
  check_range<std::int64_t>("KV block", o.kv_block, 1, 1 << 16);
  check_range<std::int64_t>("dispatch tokens", o.dispatch_tokens, 1, 1 << 20);
  check_range("utilization", o.utilization, 0.01, 1.0);
  check_range("imbalance", o.imbalance, 1.0, static_cast<double>(std::max<std::int64_t>(model.experts, 1)));
  if (o.kv_element_bytes != 1 && o.kv_element_bytes != 2)
    throw Error(Errc::invalid_argument,
                fmt::format("KV element bytes {}: allowed are 1 and 2", o.kv_element_bytes));
  if (o.mtp && model.mtp_layers == 0)
    throw Error(Errc::invalid_argument, fmt::format("{} has no multi-token prediction modules", model.name));
  if (layout.ep > 1 || o.all_to_all == AllToAll::nccl || o.all_to_all == AllToAll::none) return;
  throw Error(Errc::invalid_argument,
              fmt::format("all-to-all {} with ep 1: there is nothing to exchange",
                          all_to_all_names()[static_cast<std::size_t>(o.all_to_all)]));
}

double sequence_bytes(const ModelSpec& model, const LayerSpec& layer, const Layout& layout,
                      const ServingOptions& o) {
  if (layer.attention == LayerAttention::linear) return 0;
  std::int64_t tokens = o.max_length;
  if (layer.attention == LayerAttention::window) tokens = std::min(tokens, model.window);
  tokens = round_up(tokens, o.kv_block);
  const AttentionSpec& a = model.attention;
  const std::int64_t elements = a.kind == AttentionKind::latent
                                    ? a.kv_rank + a.rope_dim
                                    : 2 * local_kv_heads(model, layout.tp) * a.head_dim;
  return as_double(tokens) * as_double(elements * o.kv_element_bytes);
}

/// Alive at once while one layer works on a batch: the residual and its norm, and the widest of its parts.
double pass_bytes(const ModelSpec& model, const LayerSpec& layer, const Layout& layout,
                  const ServingOptions& o) {
  const double tokens = as_double(o.batch_tokens);
  const double tp = as_double(layout.tp);
  const AttentionSpec& a = model.attention;
  double attention = 0;
  if (layer.attention == LayerAttention::linear) {
    attention = 2 *
                as_double(4 * model.linear.key_heads * model.linear.key_dim +
                          4 * model.linear.value_heads * model.linear.value_dim) /
                tp;
  } else if (a.kind == AttentionKind::latent) {
    attention = 2 * as_double(a.q_rank + a.kv_rank + a.rope_dim) +
                2 * as_double(a.heads) / tp * as_double(2 * (a.nope_dim + a.rope_dim) + 2 * a.value_dim);
  } else {
    attention = 2 * (2 * as_double(a.heads * a.head_dim) / tp +
                     2 * as_double(local_kv_heads(model, layout.tp) * a.head_dim));
  }
  const double per_column = 2 * ((model.gated ? 2 : 1) + 1);
  double mlp = 0;
  if (!layer.moe) {
    mlp = tokens * per_column * as_double(model.dense_intermediate) / tp;
  } else {
    const double rows = tokens * as_double(layout.dp) / as_double(layout.edp()) * as_double(model.top_k) /
                        as_double(layout.ep) * o.imbalance;
    mlp = rows * (2 * 2 * as_double(model.hidden) +
                  per_column * as_double(model.expert_intermediate) / as_double(layout.etp)) +
          tokens * per_column * as_double(model.shared_intermediate) / tp;
  }
  return tokens * 2 * 2 * as_double(model.hidden) + std::max(tokens * attention, mlp);
}

double communication(const ModelSpec& model, const Layout& layout, const ServingOptions& o) {
  const double hidden = 2 * as_double(model.hidden);
  double bytes = 0;
  if (layout.tp > 1) bytes += hidden * as_double(o.batch_tokens);
  if (layout.pp > 1) bytes += 2 * hidden * as_double(o.batch_tokens);
  if (layout.ep == 1) return bytes;
  if (o.all_to_all == AllToAll::nccl) {
    // Rows of this rank's tokens, and rows for its experts.
    const double out = as_double(o.batch_tokens) / as_double(layout.tp) * as_double(model.top_k);
    const double in = as_double(o.batch_tokens) * as_double(layout.dp) / as_double(layout.edp()) *
                      as_double(model.top_k) / as_double(layout.ep) * o.imbalance;
    return bytes + hidden * (out + in);
  }
  return bytes + all_to_all_bytes(o.all_to_all, model.experts + layout.redundant_experts, model.top_k,
                                  model.hidden, o.dispatch_tokens, layout.ep, std::min(layout.tp, layout.ep));
}

void add_weights(const ModelSpec& model, const Layout& layout, const ServingOptions& o,
                 const StageParameters& parameters, StageMemory& memory) {
  memory.parameters = parameters.total();
  memory.weights = std::ceil(parameters.matrices * weight_bits(o.weights) / 8 + 2 * parameters.other);
  if (parameters.moe_layers == 0) return;
  const double places = as_double((model.experts + layout.redundant_experts) / layout.ep);
  const double one = expert_bytes(model, model.expert_intermediate / layout.etp, o.expert_weights);
  const double all = as_double(parameters.moe_layers) * places * one;
  const double redundant =
      all * as_double(layout.redundant_experts) / as_double(model.experts + layout.redundant_experts);
  memory.expert_weights = std::ceil(all - redundant);
  memory.redundant_experts = std::ceil(redundant);
}

}  // namespace

double all_to_all_bytes(AllToAll method, std::int64_t experts, std::int64_t top_k, std::int64_t hidden,
                        std::int64_t tokens, std::int64_t ranks, std::int64_t tp) {
  const double local = as_double(ceil_div(experts, ranks));
  const double groups = as_double(ranks) / as_double(tp);
  const double m = as_double(tokens);
  const double e = as_double(experts);
  if (method == AllToAll::deepep_low_latency) {
    // Two buffers of: send (the larger of the two directions), receive, signals. A dispatch message is a header and
    // the token in bf16 or in fp8 with scales; a combine message the result with two bf16 for each scale.
    const std::int64_t scales = ceil_div(hidden, 128);
    const double dispatch = 16 + as_double(std::max(2 * hidden, hidden + 4 * scales));
    const double combine = as_double(4 * scales + 2 * hidden);
    const double send = std::max(m * dispatch, e * m * combine);
    const double receive = std::max(e * m * dispatch, e * m * combine);
    return 2 * (send + receive + as_double(round_up(4 * experts, 128)));
  }
  if (method == AllToAll::pplx) {
    const double token = as_double(round_up(hidden + 4 * ceil_div(hidden, 128) + 4, 16));
    const double h4 = 4 * as_double(hidden);
    return m * token + local * groups * m * token + local * groups * m * h4 + m * e * h4 +
           8 * (2 * local * groups + m + as_double(ranks));
  }
  if (method == AllToAll::shunt) {
    const std::int64_t on_rank = ceil_div(experts, ranks);
    const std::int64_t most = std::min(top_k, on_rank);
    const double rows = groups * m * as_double(most);
    const auto page = [](double bytes) { return std::ceil(bytes / 4096) * 4096; };
    const std::int64_t share = ceil_div(tokens, tp);
    const double messages = as_double(ranks) * as_double(round_up(8 + 8 * share * most, 128)) +
                            as_double(ranks) * as_double(round_up(8 + 4 * tokens * most, 128)) +
                            2 * 128 * as_double(ranks);
    return 2 * page(rows * 2 * as_double(hidden)) + page(m * 2 * as_double(hidden)) + page(messages);
  }
  return 0;
}

void plan_serving(const ModelSpec& model, MemoryPlan& plan) {
  const Layout& layout = plan.layout;
  const ServingOptions& o = plan.options.inference;
  check(model, layout, o);
  for (std::int64_t stage = 0; stage < layout.pp; ++stage) {
    StageMemory memory;
    memory.stage = stage;
    memory.in_flight = 1;
    const StageParameters parameters = stage_parameters(model, layout, stage, o.mtp);
    memory.layers = parameters.layers;
    add_weights(model, layout, o, parameters, memory);
    const std::int64_t begin = first_layer(layout, stage);
    const std::int64_t end = begin + layout.stage_layers[static_cast<std::size_t>(stage)];
    const bool last = stage == layout.pp - 1;
    const std::int64_t modules = last && o.mtp ? model.mtp_layers : 0;
    double kv = 0;
    double token = 0;
    std::int64_t linear = 0;
    for (std::int64_t i = begin; i < end + modules; ++i) {
      const LayerSpec& layer = i < end ? model.layers[static_cast<std::size_t>(i)] : model.layers.back();
      const double bytes = sequence_bytes(model, layer, layout, o);
      kv += bytes;
      if (layer.attention == LayerAttention::linear) {
        ++linear;
      } else {
        const AttentionSpec& a = model.attention;
        token +=
            as_double((a.kind == AttentionKind::latent ? a.kv_rank + a.rope_dim
                                                       : 2 * local_kv_heads(model, layout.tp) * a.head_dim) *
                      o.kv_element_bytes);
      }
      memory.activations = std::max(memory.activations, pass_bytes(model, layer, layout, o));
      if (layer.moe)
        memory.router =
            (8 * as_double(model.experts) + 8 * as_double(model.top_k)) * as_double(o.batch_tokens);
    }
    plan.kv_bytes_per_token = std::max(plan.kv_bytes_per_token, token);
    memory.kv_cache = as_double(o.max_sequences) * kv;
    if (linear > 0) {
      const auto all = std::count_if(model.layers.begin(), model.layers.end(), [](const LayerSpec& layer) {
        return layer.attention == LayerAttention::linear;
      });
      memory.states = as_double(o.max_sequences) * as_double(state_bytes_per_sequence(model)) *
                      as_double(linear) / as_double(all) / as_double(layout.tp);
    }
    if (last) {
      memory.logits = as_double(std::min(o.max_sequences, o.batch_tokens)) * 4 *
                      as_double(ceil_div(model.vocab, layout.tp));
    }
    memory.communication = communication(model, layout, o);
    plan.stages.push_back(memory);
  }
}

}  // namespace shunt::plan
