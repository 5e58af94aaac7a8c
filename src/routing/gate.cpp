#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include <shunt/routing/gate.h>

#include "scores.h"
#include "selections.h"

namespace shunt {
namespace {

using detail::at;
using detail::refuse;

template <class Real>
void check_input(const GateConfig& gate, const GateInput<Real>& input) {
  check_gate(gate);
  const View2<const Real>& logits = input.logits;
  if (logits.cols != gate.num_experts)
    refuse("gate {}: logits of {} experts; the gate has {}", gate.name, logits.cols, gate.num_experts);
  if (gate.selection != Selection::hash && gate.selection != Selection::compat_hash)
    detail::check_finite(logits, "gate " + gate.name);
  if (gate.selection == Selection::hash && static_cast<std::int64_t>(input.token_ids.size()) != logits.rows)
    refuse("gate {}: {} token ids for {} tokens; a hash gate looks at what each token is", gate.name,
           input.token_ids.size(), logits.rows);
  if (input.bias.empty()) return;
  if (gate.selection != Selection::top_k)
    refuse("gate {}: a bias of {} experts; only gates in which tokens choose by score take one", gate.name,
           input.bias.size());
  if (static_cast<std::int64_t>(input.bias.size()) != gate.num_experts)
    refuse("gate {}: a bias of {} experts; the gate has {}", gate.name, input.bias.size(), gate.num_experts);
  for (std::size_t e = 0; e < input.bias.size(); ++e) {
    if (!std::isfinite(input.bias[e]))
      refuse("gate {}: the bias of expert {} is {}; it must be finite", gate.name, e, input.bias[e]);
  }
}

/// Chooses the experts of one token from its scores, within the best groups where the gate has some.
template <class Real>
class TokenChoice {
 public:
  explicit TokenChoice(const GateConfig& gate)
      : gate_(gate),
        size_(gate.num_experts / gate.groups),
        best_(gate.group_best > 0 ? gate.group_best : std::max(1, gate.top_k / gate.top_groups)),
        group_scores_(at(gate.groups)),
        chosen_groups_(at(gate.top_groups)),
        of_group_(at(size_)),
        candidates_(at(std::int64_t{gate.top_groups} * size_)) {}

  void operator()(const Real* scores, std::int32_t* ids) {
    if (gate_.top_groups == gate_.groups) {
      detail::select_largest(scores, gate_.num_experts, gate_.top_k, ids);
      return;
    }
    const std::int64_t best = std::min(best_, size_);
    for (std::int32_t g = 0; g < gate_.groups; ++g) {
      const Real* of = scores + std::int64_t{g} * size_;
      detail::select_largest(of, size_, best, of_group_.data());
      Real sum = 0;
      for (std::int64_t i = 0; i < best; ++i) sum += of[of_group_[at(i)]];
      group_scores_[at(g)] = sum;
    }
    detail::select_largest(group_scores_.data(), gate_.groups, gate_.top_groups, chosen_groups_.data());
    // In the order of experts, so that the lower index wins a tie across groups too.
    std::sort(chosen_groups_.begin(), chosen_groups_.end());
    auto to = candidates_.begin();
    for (const std::int32_t g : chosen_groups_) to = std::copy_n(scores + std::int64_t{g} * size_, size_, to);
    detail::select_largest(candidates_.data(), static_cast<std::int64_t>(candidates_.size()), gate_.top_k,
                           ids);
    for (std::int32_t k = 0; k < gate_.top_k; ++k)
      ids[k] = chosen_groups_[at(ids[k] / size_)] * size_ + ids[k] % size_;
  }

 private:
  const GateConfig& gate_;
  std::int32_t size_, best_;
  std::vector<Real> group_scores_;
  std::vector<std::int32_t> chosen_groups_, of_group_;
  std::vector<Real> candidates_;
};

/// Weights of the chosen experts of one token, without the gate's scale. `ids` may end in -1.
template <class Real>
void make_weights(const GateConfig& gate, const Real* z, const Real* scores, const std::int32_t* ids,
                  std::int64_t k, Real* weights) {
  std::int64_t live = 0;
  while (live < k && ids[live] >= 0) ++live;
  std::fill_n(weights + live, k - live, Real(0));
  switch (gate.weights) {
    case WeightRule::softmax_chosen: {
      Real largest = -std::numeric_limits<Real>::infinity();
      for (std::int64_t i = 0; i < live; ++i) largest = std::max(largest, z[ids[i]]);
      Real sum = 0;
      for (std::int64_t i = 0; i < live; ++i)
        sum += weights[i] = std::exp((z[ids[i]] - largest) / static_cast<Real>(gate.temperature));
      for (std::int64_t i = 0; i < live; ++i) weights[i] /= sum;
      break;
    }
    case WeightRule::score:
      for (std::int64_t i = 0; i < live; ++i) weights[i] = scores[ids[i]];
      break;
    case WeightRule::sum: {
      Real sum = 0;
      for (std::int64_t i = 0; i < live; ++i) sum += scores[ids[i]];
      for (std::int64_t i = 0; i < live; ++i) weights[i] = scores[ids[i]] / (sum + Real(1e-20));
      break;
    }
    case WeightRule::p_norm: {
      const Real norm = detail::p_norm(scores, ids, live, static_cast<Real>(gate.norm_power));
      for (std::int64_t i = 0; i < live; ++i) weights[i] = norm > 0 ? scores[ids[i]] / norm : Real(0);
      break;
    }
    case WeightRule::relu_sum: {
      Real sum = 0;
      for (std::int64_t i = 0; i < live; ++i) sum += std::max(z[ids[i]], Real(0));
      for (std::int64_t i = 0; i < live; ++i) weights[i] = std::max(z[ids[i]], Real(0)) / (sum + Real(1e-9));
      break;
    }
    case WeightRule::mean:
      std::fill_n(weights, live, 1 / static_cast<Real>(gate.top_k));
      break;
    case WeightRule::one:
      std::fill_n(weights, live, Real(1));
      break;
  }
}

template <class Real>
void choose_by_score(const GateConfig& gate, const GateInput<Real>& input, GateOutput<Real>& out) {
  const std::int64_t experts = gate.num_experts;
  const bool grouped = gate.top_groups != gate.groups;
  const bool from_score = gate.weights == WeightRule::score || gate.weights == WeightRule::sum ||
                          gate.weights == WeightRule::p_norm;
  const bool scored = from_score || grouped || !input.bias.empty();
  std::vector<Real> scores(at(experts)), biased(at(experts));
  TokenChoice<Real> choose(gate);
  for (std::int64_t t = 0; t < out.num_tokens; ++t) {
    const Real* z = input.logits.row(t);
    std::int32_t* ids = out.ids.data() + t * out.top_k;
    if (scored)
      detail::make_scores(gate.score, static_cast<Real>(gate.temperature), z, experts, scores.data());
    const Real* compared = scores.data();
    if (!input.bias.empty()) {
      for (std::int64_t e = 0; e < experts; ++e) biased[at(e)] = scores[at(e)] + input.bias[at(e)];
      compared = biased.data();
    } else if (!grouped) {
      // Scores rise with the logit, but rounding makes some of them equal: the logit tells more.
      compared = z;
    }
    choose(compared, ids);
    make_weights(gate, z, scores.data(), ids, out.top_k, out.weights.data() + t * out.top_k);
  }
}

template <class Real>
void weigh(const GateConfig& gate, View2<const Real> logits, GateOutput<Real>& out) {
  std::vector<Real> scores(at(gate.num_experts));
  for (std::int64_t t = 0; t < out.num_tokens; ++t) {
    if (gate.weights != WeightRule::mean && gate.weights != WeightRule::one)
      detail::make_scores(gate.score, static_cast<Real>(gate.temperature), logits.row(t), gate.num_experts,
                          scores.data());
    make_weights(gate, logits.row(t), scores.data(), out.ids.data() + t * out.top_k, out.top_k,
                 out.weights.data() + t * out.top_k);
  }
}

}  // namespace

template <class Real>
GateOutput<Real> gate_forward(const GateConfig& gate, const GateInput<Real>& input) {
  check_input(gate, input);
  GateOutput<Real> out;
  out.num_tokens = input.logits.rows;
  out.num_experts = gate.num_experts;
  out.top_k = gate.top_k;
  const auto make_room = [&out] {
    out.ids.assign(at(out.num_tokens * out.top_k), -1);
    out.weights.assign(out.ids.size(), Real(0));
  };
  make_room();
  switch (gate.selection) {
    case Selection::top_k:
      choose_by_score(gate, input, out);
      break;
    case Selection::expert_choice:
      detail::choose_experts(gate, input.logits, out);
      break;
    case Selection::sinkhorn:
      detail::choose_balanced(gate, input.logits, out);
      weigh(gate, input.logits, out);
      break;
    case Selection::hash:
      detail::choose_by_hash(gate, input.token_ids, out.ids);
      weigh(gate, input.logits, out);
      break;
    case Selection::compat_hash:
      detail::choose_by_position(gate, out.num_tokens, out.ids);
      weigh(gate, input.logits, out);
      break;
    case Selection::compat_expert_choice:
      detail::choose_like_the_old_system(gate, input.logits, out);
      break;
  }
  if (gate.scale != 1.0) {
    for (Real& weight : out.weights) weight *= static_cast<Real>(gate.scale);
  }
  return out;
}

template GateOutput<float> gate_forward(const GateConfig&, const GateInput<float>&);
template GateOutput<double> gate_forward(const GateConfig&, const GateInput<double>&);

Routing to_routing(const GateOutput<float>& output) {
  return {output.num_tokens, output.top_k, output.num_experts, output.ids, output.weights};
}

template <class Real>
std::vector<std::int64_t> expert_counts(const GateOutput<Real>& output) {
  std::vector<std::int64_t> counts(at(output.num_experts), 0);
  for (const std::int32_t id : output.ids) {
    if (id >= 0) ++counts[at(id)];
  }
  return counts;
}

template std::vector<std::int64_t> expert_counts(const GateOutput<float>&);
template std::vector<std::int64_t> expert_counts(const GateOutput<double>&);

}  // namespace shunt
