#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include <shunt/core/view.h>
#include <shunt/routing/gate.h>

namespace shunt::detail {

/// Expert choice: fills ids, weights (without scale) and the width of a row.
template <class Real>
void choose_experts(const GateConfig& gate, View2<const Real> logits, GateOutput<Real>& out);

/// moe-routing-bench's expert choice: ids and weights.
template <class Real>
void choose_like_the_old_system(const GateConfig& gate, View2<const Real> logits, GateOutput<Real>& out);

/// Sinkhorn: ids only.
template <class Real>
void choose_balanced(const GateConfig& gate, View2<const Real> logits, GateOutput<Real>& out);

/// K distinct experts for each token id.
void choose_by_hash(const GateConfig& gate, std::span<const std::int64_t> token_ids,
                    std::vector<std::int32_t>& ids);

/// moe-routing-bench's hash of the position; ids may repeat.
void choose_by_position(const GateConfig& gate, std::int64_t num_tokens, std::vector<std::int32_t>& ids);

}  // namespace shunt::detail
