#include <algorithm>
#include <cmath>

#include <shunt/cluster/parameters.h>
#include <shunt/plan/schedule.h>

#include "stage.h"

namespace shunt::plan {
namespace {

/// Bytes that one layer keeps for the backward pass of one microbatch on one GPU.
struct LayerActivations {
  double kept = 0;
  double router = 0;
  double dropped = 0;  ///< Computed again: alive for one layer at a time
  double largest = 0;  ///< Of its tensors
};

/// Sums tensors, kept or recomputed.
class Tensors {
 public:
  void add(double bytes, bool keep = true) {
    (keep ? layer.kept : layer.dropped) += bytes;
    layer.largest = std::max(layer.largest, bytes);
  }
  LayerActivations layer;
};

double as_double(std::int64_t value) {
  return static_cast<double>(value);
}

class Activations {
 public:
  Activations(const ModelSpec& model, const Layout& layout, const TrainingOptions& options)
      : model_(model),
        options_(options),
        selective_(options.recompute == Recompute::selective ? options.parts : RecomputeParts{false}),
        tokens_(as_double(options.micro_batch) * as_double(options.sequence) / as_double(layout.cp)),
        tp_(layout.tp),
        etp_(layout.etp),
        copies_(layout.tp > 1 && options.sequence_parallel ? as_double(layout.tp) : 1.0) {}

  [[nodiscard]] double tokens() const { return tokens_; }
  /// Bytes of one row of H elements in bf16 for all tokens, on one rank.
  [[nodiscard]] double hidden_bytes() const { return 2 * as_double(model_.hidden) * tokens_ / copies_; }
  /// Rows that come to the experts of this rank.
  [[nodiscard]] double expert_rows() const {
    return tokens_ * as_double(model_.top_k) * as_double(etp_) / as_double(tp_) * options_.imbalance;
  }

  [[nodiscard]] LayerActivations of(const LayerSpec& spec) const {
    Tensors tensors;
    for (std::int64_t i = 0; i < model_.norms_per_layer; ++i) tensors.add(hidden_bytes());
    tensors.add(hidden_bytes(), !selective_.norms);
    tensors.add(hidden_bytes(), !selective_.norms);
    if (options_.dropout) tensors.add(2 * hidden_bytes() / 2);
    if (spec.attention == LayerAttention::linear) {
      add_linear(tensors);
    } else if (model_.attention.kind == AttentionKind::latent) {
      add_latent(tensors, spec);
    } else {
      add_grouped(tensors, spec);
    }
    if (spec.moe) {
      add_experts(tensors);
    } else {
      add_columns(tensors, as_double(model_.dense_intermediate) / as_double(tp_), tokens_, !selective_.mlp);
    }
    if (options_.recompute == Recompute::full) {
      const double all = tensors.layer.kept + tensors.layer.router;
      tensors.layer = {hidden_bytes(), 0, all - hidden_bytes(), tensors.layer.largest};
    }
    return tensors.layer;
  }

 private:
  void add_scores(Tensors& tensors, const LayerSpec& spec) const {
    const double heads = as_double(model_.attention.heads) / as_double(tp_);
    if (options_.flash_attention) {
      tensors.add(4 * heads * tokens_);
      return;
    }
    double keys = as_double(options_.sequence);
    if (spec.attention == LayerAttention::window) keys = std::min(keys, as_double(model_.window));
    // Softmax; with dropout its mask and what is left.
    tensors.add((options_.dropout ? 5 : 2) * heads * keys * tokens_, !selective_.attention_scores);
  }

  void add_grouped(Tensors& tensors, const LayerSpec& spec) const {
    const AttentionSpec& a = model_.attention;
    const double query = 2 * as_double(a.heads * a.head_dim) / as_double(tp_) * tokens_;
    const double key = 2 * as_double(local_kv_heads(model_, tp_) * a.head_dim) * tokens_;
    tensors.add(query);
    tensors.add(2 * key);
    tensors.add(query);  // The result, input of the output projection.
    if (a.output_gate) tensors.add(query);
    if (a.qk_norm != QkNorm::none) tensors.add(query + key);
    add_scores(tensors, spec);
  }

  void add_latent(Tensors& tensors, const LayerSpec& spec) const {
    const AttentionSpec& a = model_.attention;
    const double heads = as_double(a.heads) / as_double(tp_);
    tensors.add(2 * as_double(2 * a.q_rank + 2 * a.kv_rank + a.rope_dim) * tokens_);
    const double query = 2 * heads * as_double(a.nope_dim + a.rope_dim) * tokens_;
    const double value = 2 * heads * as_double(a.value_dim) * tokens_;
    tensors.add(query, !selective_.latent_queries);
    tensors.add(query, !selective_.latent_queries);
    tensors.add(value, !selective_.latent_queries);
    tensors.add(value);
    add_scores(tensors, spec);
  }

  void add_linear(Tensors& tensors) const {
    const LinearAttentionSpec& a = model_.linear;
    const double keys = 2 * as_double(a.key_heads * a.key_dim) / as_double(tp_) * tokens_;
    const double values = 2 * as_double(a.value_heads * a.value_dim) / as_double(tp_) * tokens_;
    tensors.add(2 * keys + values);  // Before the convolution
    tensors.add(2 * keys + values);  // and after it.
    tensors.add(values);             // Gate
    tensors.add(values);             // Result
    tensors.add(values);             // and its norm.
  }

  /// An MLP of so many columns over so many rows.
  void add_columns(Tensors& tensors, double columns, double rows, bool keep) const {
    tensors.add((model_.gated ? 2 : 1) * 2 * columns * rows, keep);
    tensors.add(2 * columns * rows, keep && !selective_.activations);
  }

  void add_experts(Tensors& tensors) const {
    const bool keep = !selective_.moe;
    // Logits and scores in fp32, choice and weight of each selection.
    const double routed =
        (8 * as_double(model_.experts) + 8 * as_double(model_.top_k)) * tokens_ / as_double(tp_);
    if (keep) {
      tensors.layer.router += routed;
    } else {
      tensors.layer.dropped += routed;
    }
    tensors.add(2 * as_double(model_.hidden) * expert_rows(), keep);
    add_columns(tensors, as_double(model_.expert_intermediate) / as_double(etp_), expert_rows(), keep);
    if (model_.shared_intermediate > 0)
      add_columns(tensors, as_double(model_.shared_intermediate) / as_double(tp_), tokens_, keep);
  }

  const ModelSpec& model_;
  const TrainingOptions& options_;
  RecomputeParts selective_;
  double tokens_;  ///< Of one microbatch on one rank of a context-parallel group
  std::int64_t tp_;
  std::int64_t etp_;
  double copies_;
};

[[noreturn]] void refuse(const std::string& why) {
  throw Error(Errc::invalid_argument, why);
}

void check(const ModelSpec& model, const Layout& layout, const TrainingOptions& o) {
  check_range<std::int64_t>("micro batch", o.micro_batch, 1, 1 << 16);
  check_range<std::int64_t>("sequence", o.sequence, 1, 1 << 26);
  check_range<std::int64_t>("microbatches", o.microbatches, 0, 1 << 20);
  check_range<std::int64_t>("zero", o.zero, 0, 3);
  check_range<std::int64_t>("chunks", o.chunks, 1, 64);
  check_range("imbalance", o.imbalance, 1.0, static_cast<double>(std::max<std::int64_t>(model.experts, 1)));
  if (o.gradient_bytes != 2 && o.gradient_bytes != 4)
    refuse(fmt::format("gradient bytes {}: allowed are 2 and 4", o.gradient_bytes));
  if (o.sequence % layout.cp != 0)
    refuse(fmt::format("cp {} does not divide the sequence of {} tokens", layout.cp, o.sequence));
  if (o.sequence_parallel && o.sequence / layout.cp % layout.tp != 0) {
    refuse(fmt::format(
        "tp {} does not divide the {} tokens of a sequence on one rank, as sequence parallelism needs",
        layout.tp, o.sequence / layout.cp));
  }
  if (!o.sequence_parallel && layout.tp > 1 && model.experts > 0)
    refuse(fmt::format("tp {} without sequence parallelism: every rank would send all tokens to the experts",
                       layout.tp));
  if (o.mtp && model.mtp_layers == 0)
    refuse(fmt::format("{} has no multi-token prediction modules", model.name));
}

void check_schedule(const Layout& layout, const TrainingOptions& o) {
  const std::string name = schedule_names()[static_cast<std::size_t>(o.schedule)];
  if (o.schedule != Schedule::interleaved && o.chunks != 1)
    refuse(
        fmt::format("chunks {}: only the interleaved schedule has more than 1, this is {}", o.chunks, name));
  if (o.schedule == Schedule::interleaved) {
    if (layout.pp < 2) refuse("the interleaved schedule needs pp of at least 2");
    if (o.chunks < 2) refuse("the interleaved schedule needs chunks of at least 2");
    if (o.microbatches % layout.pp != 0)
      refuse(fmt::format("the interleaved schedule needs microbatches that pp {} divides, not {}", layout.pp,
                         o.microbatches));
    for (const std::int64_t layers : layout.stage_layers)
      if (layers % o.chunks != 0)
        refuse(fmt::format("chunks {} does not divide the {} layers of a stage", o.chunks, layers));
  }
  if (o.schedule == Schedule::dualpipe) {
    if (layout.pp % 2 != 0) refuse(fmt::format("dualpipe needs an even pp, not {}", layout.pp));
    if (o.microbatches % 2 != 0 || o.microbatches < 2 * layout.pp)
      refuse(fmt::format("dualpipe needs an even number of microbatches, at least {} for pp {}, not {}",
                         2 * layout.pp, layout.pp, o.microbatches));
  }
}

/// Microbatches whose activations of the whole stage are kept at the peak.
double in_flight(const Layout& layout, const TrainingOptions& o, std::int64_t stage) {
  const std::string& name = schedule_names()[static_cast<std::size_t>(o.schedule)];
  return peak_microbatches(find_pipeline(name), layout.pp, o.microbatches, o.chunks, stage);
}

struct Shards {
  double dense = 1;
  double experts = 1;
};

void add_states(const TrainingOptions& o, const StageParameters& parameters, const Shards& shards,
                StageMemory& memory) {
  const double dense = parameters.matrices + parameters.other;
  const auto share = [&](std::int64_t level, double count, double shard) {
    return std::ceil(o.zero >= level ? count / shard : count);
  };
  memory.parameters += parameters.total();
  memory.weights += 2 * share(3, dense, shards.dense);
  memory.expert_weights += 2 * share(3, parameters.experts, shards.experts);
  memory.gradients += as_double(o.gradient_bytes) *
                      (share(2, dense, shards.dense) + share(2, parameters.experts, shards.experts));
  memory.optimizer += as_double(optimizer_bytes(o.optimizer)) *
                      (share(1, dense, shards.dense) + share(1, parameters.experts, shards.experts));
  // The layer at work and the next one, which is on its way.
  if (o.zero == 3)
    memory.gathered_weights = std::max(memory.gathered_weights, 2 * 2 * parameters.largest_layer);
}

void add_activations(const ModelSpec& model, const Layout& layout, const TrainingOptions& o,
                     const Activations& activations, std::int64_t stage, StageMemory& memory) {
  LayerActivations sum;
  double dropped = 0;
  const auto add = [&](const LayerSpec& layer) {
    const LayerActivations one = activations.of(layer);
    sum.kept += one.kept;
    sum.router += one.router;
    sum.largest = std::max(sum.largest, one.largest);
    dropped = std::max(dropped, one.dropped);
  };
  const std::int64_t begin = first_layer(layout, stage);
  for (std::int64_t i = begin; i < begin + layout.stage_layers[static_cast<std::size_t>(stage)]; ++i)
    add(model.layers[static_cast<std::size_t>(i)]);
  const bool last = stage == layout.pp - 1;
  if (last && o.mtp)
    for (std::int64_t i = 0; i < model.mtp_layers; ++i) add(model.layers.back());
  const double tokens = activations.tokens();
  if (stage == 0) sum.kept += 8 * tokens + (o.dropout ? activations.hidden_bytes() / 2 : 0);
  memory.activations = std::max(memory.activations, memory.in_flight * sum.kept);
  memory.router = std::max(memory.router, memory.in_flight * sum.router);
  if (last) {
    const double vocab = as_double(ceil_div(model.vocab, layout.tp));
    const double heads = 1 + (o.mtp ? as_double(model.mtp_layers) : 0);
    // The backward pass of the head follows its forward pass at once, but for GPipe.
    const double times = o.schedule == Schedule::gpipe ? memory.in_flight : 1;
    memory.logits = times * heads * (2 * activations.hidden_bytes() + 4 * vocab * tokens);
    sum.largest = std::max(sum.largest, 2 * vocab * tokens);
  }
  memory.temporary = std::max(memory.temporary, dropped + sum.largest);
}

double communication(const ModelSpec& model, const Layout& layout, const TrainingOptions& o,
                     const Activations& activations) {
  double bytes = 0;
  // All-to-all: rows on their way out, results on their way back.
  if (layout.ep * layout.etp > 1)
    bytes += 2 * 2 * as_double(model.hidden) * as_double(model.top_k) * activations.tokens() /
             as_double(layout.tp);
  if (layout.tp > 1 && o.sequence_parallel) bytes += 2 * as_double(model.hidden) * activations.tokens();
  if (layout.pp > 1) bytes += 2 * activations.hidden_bytes();
  return bytes;
}

}  // namespace

void plan_training(const ModelSpec& model, MemoryPlan& plan) {
  const Layout& layout = plan.layout;
  TrainingOptions& o = plan.options.training;
  check(model, layout, o);
  if (o.microbatches == 0) o.microbatches = layout.pp * (o.schedule == Schedule::dualpipe ? 2 : 1);
  check_schedule(layout, o);
  const Activations activations(model, layout, o);
  // With DualPipe two ranks hold each stage, so there are twice as many to divide its states among.
  const bool dual = o.schedule == Schedule::dualpipe;
  const double copies = dual ? 2 : 1;
  const Shards shards{copies * as_double(layout.dp * layout.cp), copies * as_double(layout.edp())};
  for (std::int64_t stage = 0; stage < layout.pp; ++stage) {
    StageMemory memory;
    memory.stage = stage;
    memory.in_flight = in_flight(layout, o, stage);
    memory.communication = communication(model, layout, o, activations);
    for (const std::int64_t held :
         dual ? std::vector<std::int64_t>{stage, layout.pp - 1 - stage} : std::vector<std::int64_t>{stage}) {
      const StageParameters parameters = stage_parameters(model, layout, held, o.mtp);
      memory.layers += parameters.layers;
      add_states(o, parameters, shards, memory);
      add_activations(model, layout, o, activations, held, memory);
    }
    plan.stages.push_back(memory);
  }
}

}  // namespace shunt::plan
