#include "layer_time.h"

#include <algorithm>
#include <cmath>

#include <fmt/format.h>

#include <shunt/cluster/volume.h>
#include <shunt/core/error.h>

#include "kernels.h"
#include "stage.h"

namespace shunt::plan {
namespace {

double real(std::int64_t value) {
  return static_cast<double>(value);
}

/// Backward passes of kernels that only move bytes read one operand more.
constexpr double kElementwiseBackward = 1.5;
/// Fused attention computes its scores again: five products instead of two.
constexpr double kAttentionBackward = 2.5;

}  // namespace

Work& Works::of(const std::string& name) {
  for (Work& work : works_)
    if (work.name == name) return work;
  works_.push_back({name, "compute", false, 0, 0, 0, 0, 0, 0});
  return works_.back();
}

void Works::add(const Works& other, double times) {
  for (const Work& from : other.works_) {
    Work& to = of(from.name);
    to.tier = from.tier;
    to.communication = from.communication;
    to.forward_us += times * from.forward_us;
    to.backward_us += times * from.backward_us;
    to.weight_gradient_us += times * from.weight_gradient_us;
    to.flops += times * from.flops;
    to.needed_flops += times * from.needed_flops;
    to.bytes += times * from.bytes;
  }
}

/// Collects the kernels of one layer. `again` marks what selective recomputation does a second time.
class LayerTimer::Builder {
 public:
  explicit Builder(const LayerTimer& timer)
      : t_(timer),
        training_(timer.o_.phase == Phase::training),
        full_(training_ && timer.o_.training.recompute == Recompute::full) {
    if (training_ && timer.o_.training.recompute == Recompute::selective)
      selective_ = timer.o_.training.parts;
    else
      selective_ = RecomputeParts{false};
  }

  Works works;

  [[nodiscard]] bool training() const { return training_; }
  [[nodiscard]] const RecomputeParts& selective() const { return selective_; }

  /// [m, k] x [k, n], `count` times.
  void gemm(const char* name, double m, double n, double k, double count, MathType type, double weight_bytes,
            double share, bool again = false) {
    const KernelTime forward =
        gemm_time(t_.machine_, m, n, k, count, type, weight_bytes, share, t_.o_.efficiency.tile);
    KernelTime inputs, weights;
    if (training_) {
      inputs = gemm_time(t_.machine_, m, k, n, count, type, weight_bytes, share, t_.o_.efficiency.tile);
      weights = gemm_time(t_.machine_, k, n, m, count, type, 2, share, t_.o_.efficiency.tile);
    }
    add(name, forward, inputs.us + weights.us, weights.us, inputs.flops + weights.flops,
        inputs.bytes + weights.bytes, again);
  }

  void elementwise(double bytes, bool again = false) {
    const KernelTime time = elementwise_time(t_.machine_, bytes, t_.o_.efficiency.elementwise);
    const double factor = training_ ? kElementwiseBackward : 0;
    add("elementwise", time, factor * time.us, 0, 0, factor * time.bytes, again);
  }

  void attention(const AttentionShape& shape) {
    const KernelTime forward = attention_time(t_.machine_, shape, t_.o_.efficiency.attention);
    KernelTime backward;
    if (training_) {
      backward = attention_time(t_.machine_, shape, t_.o_.efficiency.attention_backward);
      backward.us *= kAttentionBackward;
      backward.flops *= kAttentionBackward;
      backward.bytes *= kAttentionBackward;
    }
    add("attention", forward, backward.us, 0, backward.flops, backward.bytes, false);
    // Of the five products four are needed.
    if (training_) works.of("attention").needed_flops -= backward.flops / 5;
  }

  void communicate(const char* name, const std::string& tier, double forward_us, double backward_us,
                   double bytes, bool again = false) {
    if (forward_us == 0 && backward_us == 0) return;
    Work& work = works.of(name);
    work.communication = true;
    work.tier = tier;
    const double repeated = again || full_ ? forward_us : 0;
    work.forward_us += forward_us;
    work.backward_us += training_ ? backward_us + repeated : 0;
    work.bytes += bytes * (training_ ? 2 + (repeated > 0 ? 1 : 0) : 1);
  }

  void add(const char* name, const KernelTime& forward, double backward_us, double weight_us,
           double backward_flops, double backward_bytes, bool again) {
    Work& work = works.of(name);
    work.forward_us += forward.us;
    work.backward_us += backward_us;
    work.weight_gradient_us += weight_us;
    work.flops += forward.flops + backward_flops;
    work.needed_flops += forward.flops + backward_flops;
    work.bytes += forward.bytes + backward_bytes;
    if (!training_ || !(again || full_)) return;
    Work& repeated = works.of("recompute");
    repeated.backward_us += forward.us;
    repeated.flops += forward.flops;
    repeated.bytes += forward.bytes;
  }

 private:
  const LayerTimer& t_;
  bool training_;
  bool full_;
  RecomputeParts selective_;
};

LayerTimer::LayerTimer(const ModelSpec& model, const Machine& machine, const StepTimeOptions& options,
                       double imbalance, const CostModel* fits)
    : model_(model), machine_(machine), o_(options), imbalance_(imbalance) {
  const Layout& layout = o_.layout;
  switch (o_.phase) {
    case Phase::training:
      tokens_ = real(o_.training.micro_batch) * real(o_.training.sequence) / real(layout.cp);
      break;
    case Phase::prefill:
      tokens_ = real(o_.batch_tokens);
      break;
    case Phase::decode:
      tokens_ = std::ceil(real(o_.sequences) / real(layout.pp)) * real(1 + o_.drafts);
      break;
  }
  if (o_.phase != Phase::training && o_.two_batches) tokens_ /= 2;
  const bool divided = o_.phase != Phase::training || o_.training.sequence_parallel;
  share_ = layout.tp > 1 && divided ? 1 / real(layout.tp) : 1;
  tensor_ = place_group(machine, layout.tp, 1);
  context_ = place_group(machine, layout.cp, layout.tp);
  experts_ = place_group(machine, layout.ep, layout.etp);
  expert_tensor_ = place_group(machine, layout.etp, 1);
  if (model.experts > 0 && layout.ep > 1) price_exchange(fits);
}

void LayerTimer::price_exchange(const CostModel* fits) {
  const Layout& layout = o_.layout;
  const std::int64_t slots = model_.experts + layout.redundant_experts;
  const double tokens = std::max(1.0, tokens_ / real(layout.tp));
  const auto domains = static_cast<std::int32_t>(experts_.domains);
  // Groups that fill their last domain in part are taken for even ones.
  const std::int64_t even = (layout.ep + domains - 1) / domains * domains;

  ExchangeKernels kernels = o_.kernels;
  const bool rack = machine_.node.domain_gpus > machine_.node.gpus && experts_.domains == 1;
  const bool chosen = kernels != ExchangeKernels::automatic;
  if (!chosen) {
    kernels = o_.phase == Phase::decode ? ExchangeKernels::low_latency : ExchangeKernels::normal;
    if (rack) kernels = ExchangeKernels::nvlink;
    if (fits == nullptr || !machine_.node.gpu.has_scale_up) kernels = ExchangeKernels::tiers;
  }
  if (kernels != ExchangeKernels::tiers && fits == nullptr) {
    throw Error(
        Errc::invalid_argument,
        fmt::format("exchange kernels {}: they are priced by a fit, and none is loaded; allowed without are "
                    "automatic and tiers",
                    exchange_kernel_names()[static_cast<std::size_t>(kernels)]));
  }
  ExchangePrice& price = exchange_;
  const std::string reason = cannot_serve(kernels, model_, machine_, experts_, slots,
                                          static_cast<std::int64_t>(std::ceil(tokens)), o_.dispatch_payload);
  if (!reason.empty()) {
    const std::string& name = exchange_kernel_names()[static_cast<std::size_t>(kernels)];
    if (chosen) throw Error(Errc::invalid_argument, fmt::format("exchange kernels {}: {}", name, reason));
    price.notes.push_back(
        fmt::format("dispatch and combine are priced by tiers: {} does not serve: {}", name, reason));
    kernels = ExchangeKernels::tiers;
  }
  price.kernels = kernels;
  // Copies of an expert lie anywhere; a token still draws from its groups of experts.
  const GroupLimit limit = group_limit(model_, even, domains);
  const bool limited = limit == GroupLimit::holds;
  if (limit == GroupLimit::unknown && kernels != ExchangeKernels::low_latency)
    price.notes.push_back(group_limit_note(model_, even, domains));
  price.tier = tier_name(experts_.tier(machine_));
  const auto topk = model_.top_k;
  const Destinations places =
      limited ? group_limited_destinations(static_cast<std::int32_t>(even), domains, model_.experts, topk,
                                           model_.expert_groups, model_.top_groups)
              : expected_destinations({static_cast<std::int32_t>(even), domains, slots, topk, 0, false});
  ExchangeShape shape{tokens,    row_bytes(o_.dispatch_payload, model_.hidden), places, true, real(topk),
                      imbalance_};
  shape.deduplicated = kernels != ExchangeKernels::low_latency;
  ExchangePath path = o_.path;
  if (kernels == ExchangeKernels::low_latency) path = ExchangePath::flat;
  if (kernels == ExchangeKernels::normal) path = ExchangePath::rail_aligned;
  const ExchangeTime there = exchange_time(machine_, experts_, shape, path);
  shape.row = row_bytes(o_.combine_payload, model_.hidden);
  const ExchangeTime back = exchange_time(machine_, experts_, shape, there.path);
  price.path = there.path;
  price.dispatch_bytes = experts_.domains > 1 ? there.far_bytes : there.near_bytes;
  price.combine_bytes = experts_.domains > 1 ? back.far_bytes : back.near_bytes;
  price.dispatch_us = machine_.launch_us + there.us();
  price.combine_us = machine_.launch_us + back.us();
  price.source = "tiers";
  if (kernels == ExchangeKernels::tiers) return;

  KernelExchange c;
  c.ranks = even;
  c.domains = domains;
  c.slots = slots;
  c.tokens = std::llround(tokens);
  c.imbalance = imbalance_;
  c.limited = limited;
  c.dispatch_payload = o_.dispatch_payload;
  c.combine_payload = o_.combine_payload;
  if (kernels == ExchangeKernels::normal) {
    c.regime = "deepep_normal";
    c.sms = o_.exchange_sms > 0 ? o_.exchange_sms : kNormalSms;
    if (machine_.node.gpu.sms > 0) price.busy_share = real(c.sms) / real(machine_.node.gpu.sms);
  } else if (kernels == ExchangeKernels::low_latency) {
    c.regime = "deepep_low_latency";
  } else {
    c.regime = "trtllm_nvlink_alltoall";
    c.variant = "NVLinkOneSided";
  }
  const ExchangePrediction prediction = predict_exchange(*fits, model_, machine_, c);
  price.dispatch_us = prediction.dispatch.us;
  price.combine_us = prediction.combine.us;
  price.source = fmt::format("{} fitted on {}", c.regime, prediction.dispatch.fit->hardware);
  if (o_.path != ExchangePath::automatic && o_.path != price.path)
    price.notes.push_back(
        fmt::format("--path {} does not hold for the kernels that price dispatch and combine ({}): "
                    "they take {}; --kernels tiers follows it",
                    exchange_path_name(o_.path), c.regime, exchange_path_name(price.path)));
}

Works LayerTimer::layer(const LayerSpec& spec) const {
  Builder b(*this);
  const Layout& layout = o_.layout;
  const Efficiency& e = o_.efficiency;
  const AttentionSpec& a = model_.attention;
  const bool training = b.training();
  const double n = tokens_;
  const double h = real(model_.hidden);
  const double tp = real(layout.tp);
  const double heads = real(a.heads) / tp;
  const double weight = training ? (o_.math == MathType::bf16 ? 2 : 1) : weight_bits(o_.weights) / 8;
  const double expert_weight =
      training ? (o_.expert_math == MathType::bf16 ? 2 : 1) : weight_bits(o_.expert_weights) / 8;
  const auto dense = [&](const char* name, double rows, double columns, double depth, bool again = false) {
    b.gemm(name, rows, columns, depth, 1, o_.math, weight, e.matrix, again);
  };

  // Who attends to what.
  AttentionShape shape;
  shape.heads = heads;
  if (o_.phase == Phase::training) {
    shape.sequences = real(o_.training.micro_batch);
    shape.queries = real(o_.training.sequence) / real(layout.cp);
    shape.keys = real(o_.training.sequence) / 2;
  } else if (o_.phase == Phase::prefill) {
    shape.queries = real(o_.prompt - o_.cached);
    shape.sequences = n / shape.queries;
    shape.keys = real(o_.cached) + shape.queries / 2;
  } else {
    shape.queries = real(1 + o_.drafts);
    shape.sequences = n / shape.queries;
    shape.keys = real(o_.context);
  }
  if (spec.attention == LayerAttention::window) shape.keys = std::min(shape.keys, real(model_.window));

  const double hidden_bytes = 2 * h * n * share_;
  const bool dropout = training && o_.training.dropout;
  // Norms, residual additions (read two, write one), masks.
  b.elementwise(hidden_bytes * 2 * real(model_.norms_per_layer), b.selective().norms);
  b.elementwise(hidden_bytes * 2 * (3 + (dropout ? 0.5 : 0)));

  if (spec.attention == LayerAttention::linear) {
    const LinearAttentionSpec& l = model_.linear;
    const double keys = real(l.key_heads * l.key_dim) / tp;
    const double values = real(l.value_heads * l.value_dim) / tp;
    dense("attention_gemm", n, 2 * keys + 2 * values + 2 * real(l.value_heads) / tp, h);
    dense("attention_gemm", n, h, values);
    b.elementwise(2 * n * (2 * (2 * keys + values) + 3 * values));
    // States are read and written once for each chunk of 64 tokens, or for each pass of a decode.
    const double state = 4 * real(l.value_heads * l.key_dim * l.value_dim) / tp;
    const double passes = o_.phase == Phase::decode ? shape.sequences : std::ceil(n / 64);
    KernelTime core = elementwise_time(machine_, 2 * state * passes, e.elementwise);
    core.flops = 6 * n * real(l.value_heads * l.key_dim * l.value_dim) / tp;
    b.add("attention", core, training ? 2 * core.us : 0, 0, training ? 2 * core.flops : 0,
          training ? 2 * core.bytes : 0, false);
  } else if (a.kind == AttentionKind::latent) {
    const double rank = real(a.kv_rank);
    const double qk = real(a.nope_dim + a.rope_dim);
    if (a.q_rank > 0) dense("attention_gemm", n, real(a.q_rank), h);
    dense("attention_gemm", n, heads * qk, a.q_rank > 0 ? real(a.q_rank) : h, b.selective().latent_queries);
    dense("attention_gemm", n, rank + real(a.rope_dim), h);
    if (o_.phase == Phase::decode) {
      // Absorbed: queries go into the space of the compressed vectors, which all heads share.
      b.gemm("attention_gemm", n, rank, real(a.nope_dim), heads, o_.math, weight, e.grouped_matrix);
      b.gemm("attention_gemm", n, real(a.value_dim), rank, heads, o_.math, weight, e.grouped_matrix);
      shape.kv_heads = 1;
      shape.qk_dim = rank + real(a.rope_dim);
      shape.value_dim = rank;
      shape.kv_bytes = shape.qk_dim * real(o_.kv_element_bytes);
    } else {
      // Prompts expand keys and values for all they can see.
      const double seen = o_.phase == Phase::prefill ? n * real(o_.prompt) / shape.queries : n;
      dense("attention_gemm", seen, heads * real(a.nope_dim + a.value_dim), rank,
            b.selective().latent_queries);
      shape.qk_dim = qk;
      shape.value_dim = real(a.value_dim);
      shape.kv_bytes = 2 * heads * (qk + shape.value_dim);
    }
    b.elementwise(2 * n * (2 * heads * qk + 2 * (real(a.q_rank) + rank)));
    b.attention(shape);
    dense("attention_gemm", n, h, heads * real(a.value_dim));
  } else {
    const double query = heads * real(a.head_dim);
    const double kv = real(local_kv_heads(model_, layout.tp) * a.head_dim);
    dense("attention_gemm", n, query * (a.output_gate ? 2 : 1) + 2 * kv, h);
    shape.kv_heads = real(local_kv_heads(model_, layout.tp));
    shape.qk_dim = shape.value_dim = real(a.head_dim);
    shape.kv_bytes = 2 * kv * real(training ? 2 : o_.kv_element_bytes);
    b.elementwise(2 * n * 2 * (query + kv));
    if (training && !o_.training.flash_attention) {
      // Whole squares of scores, written and read by the products and the softmax (and dropout) between them.
      const double keys = real(o_.training.sequence);
      const bool again = b.selective().attention_scores;
      const double batch = shape.sequences * heads;
      b.gemm("attention", shape.queries, keys, real(a.head_dim), batch, MathType::bf16, 2, e.matrix, again);
      b.gemm("attention", shape.queries, real(a.head_dim), keys, batch, MathType::bf16, 2, e.matrix, again);
      b.elementwise(2 * batch * shape.queries * keys * (2 + (dropout ? 2.5 : 0)), again);
    } else {
      b.attention(shape);
    }
    dense("attention_gemm", n, h, query);
  }
  if (layout.cp > 1) {
    // Keys and values go around the ring of the context-parallel group; their gradients come back with them.
    const double bytes =
        n * (a.kind == AttentionKind::latent ? real(a.kv_rank + a.rope_dim) * 2
                                             : 4 * real(local_kv_heads(model_, layout.tp) * a.head_dim));
    const double us = real(layout.cp - 1) * send_us(machine_, context_, bytes);
    b.communicate("context_parallel", tier_name(context_.tier(machine_)), us, 2 * us,
                  real(layout.cp - 1) * bytes);
  }

  // Tensor parallelism: gather before and reduce after each block, or one all-reduce.
  const double whole = 2 * h * n;
  double pairs = 1;
  const double columns = real(spec.moe ? model_.expert_intermediate : model_.dense_intermediate);
  const double gates = model_.gated ? 2 : 1;
  if (!spec.moe) {
    dense("mlp_gemm", n, gates * columns / tp, h, b.selective().mlp);
    b.elementwise(2 * n * (gates + 1) * columns / tp, b.selective().mlp || b.selective().activations);
    dense("mlp_gemm", n, h, columns / tp);
    pairs = 2;
  } else {
    const bool again = b.selective().moe;
    const double mine = std::max(1.0, n / tp);
    const double rows = mine * real(model_.top_k) * real(layout.etp) * imbalance_;
    const double local = real((model_.experts + layout.redundant_experts) / layout.ep);
    // Few rows do not reach every expert: those that none reaches are not read.
    const double hit = local * (1 - std::exp(-rows / local));
    const double width = columns / real(layout.etp);
    b.gemm("router", mine, real(model_.experts), h, 1, MathType::bf16, 2, e.matrix, again);
    b.elementwise(4 * mine * real(model_.experts) * 3, again);
    b.gemm("expert_gemm", rows / hit, gates * width, h, hit, o_.expert_math, expert_weight, e.grouped_matrix,
           again);
    b.elementwise(2 * rows * ((gates + 1) * width + 4 * h), again || b.selective().activations);
    b.gemm("expert_gemm", rows / hit, h, width, hit, o_.expert_math, expert_weight, e.grouped_matrix, again);
    if (layout.ep > 1) {
      b.communicate("dispatch", exchange_.tier, exchange_.dispatch_us, exchange_.dispatch_us,
                    exchange_.dispatch_bytes, again);
      b.communicate("combine", exchange_.tier, exchange_.combine_us, exchange_.combine_us,
                    exchange_.combine_bytes, again);
    }
    if (layout.etp > 1) {
      const double bytes = 2 * h * rows;
      const double us =
          all_gather_us(machine_, expert_tensor_, bytes) + reduce_scatter_us(machine_, expert_tensor_, bytes);
      b.communicate("tensor_parallel", tier_name(expert_tensor_.tier(machine_)), us, us, 2 * bytes, again);
    }
    if (model_.shared_intermediate > 0) {
      const double shared = real(model_.shared_intermediate) / tp;
      dense("shared_expert_gemm", n, gates * shared, h, again);
      b.elementwise(2 * n * (gates + 1) * shared, again || b.selective().activations);
      dense("shared_expert_gemm", n, h, shared, again);
      pairs = 2;
    }
  }
  if (layout.tp > 1) {
    const double us = pairs * (share_ < 1 ? all_gather_us(machine_, tensor_, whole) +
                                                reduce_scatter_us(machine_, tensor_, whole)
                                          : all_reduce_us(machine_, tensor_, whole));
    b.communicate("tensor_parallel", tier_name(tensor_.tier(machine_)), us, us,
                  pairs * 2 * whole * (tp - 1) / tp);
  }
  return b.works;
}

Works LayerTimer::embedding() const {
  Builder b(*this);
  b.elementwise(2 * 2 * real(model_.hidden) * tokens_ * share_);
  return b.works;
}

Works LayerTimer::head() const {
  Builder b(*this);
  const double vocab = real(ceil_div(model_.vocab, o_.layout.tp));
  double rows = tokens_;
  // Only the last token of a prompt is scored.
  if (o_.phase == Phase::prefill) rows = std::max(1.0, tokens_ / real(o_.prompt - o_.cached));
  // A checkpoint's head is bf16 whatever its layers are. Recomputation leaves it alone.
  const MathType type = MathType::bf16;
  const double share = o_.efficiency.matrix;
  const KernelTime forward =
      gemm_time(machine_, rows, vocab, real(model_.hidden), 1, type, 2, share, o_.efficiency.tile);
  const double times = b.training() ? 2 : 0;
  const KernelTime loss =
      elementwise_time(machine_, rows * vocab * (b.training() ? 6 : 2), o_.efficiency.elementwise);
  Work& work = b.works.of("output_head");
  work.forward_us = forward.us + loss.us;
  work.backward_us = times * forward.us + (b.training() ? loss.us : 0);
  work.weight_gradient_us = b.training() ? forward.us : 0;
  work.flops = work.needed_flops = forward.flops * (1 + times);
  work.bytes = (forward.bytes + loss.bytes) * (1 + times);
  if (o_.layout.tp > 1 && share_ < 1 && b.training())
    b.communicate("tensor_parallel", tier_name(tensor_.tier(machine_)),
                  all_gather_us(machine_, tensor_, 2 * real(model_.hidden) * rows),
                  reduce_scatter_us(machine_, tensor_, 2 * real(model_.hidden) * rows),
                  2 * real(model_.hidden) * rows);
  return b.works;
}

double LayerTimer::send_bytes() const {
  return 2 * real(model_.hidden) * tokens_ / real(o_.layout.tp);
}

}  // namespace shunt::plan
