#pragma once

#include <cstdint>
#include <string>

#include <fmt/format.h>

#include <shunt/cluster/model.h>
#include <shunt/core/error.h>
#include <shunt/plan/layout.h>
#include <shunt/plan/memory.h>

namespace shunt::plan {

/// Parameters that one GPU of a stage holds, by format.
struct StageParameters {
  double matrices = 0;  ///< Attention, dense MLPs, shared experts
  double other = 0;     ///< Embedding, output head, norms, routers, gates
  double experts = 0;   ///< Routed ones in all places of this rank, redundant ones too
  std::int64_t moe_layers = 0;
  std::int64_t layers = 0;
  double largest_layer = 0;  ///< All of one layer

  [[nodiscard]] double total() const noexcept { return matrices + other + experts; }
};

[[nodiscard]] StageParameters stage_parameters(const ModelSpec& model, const Layout& layout,
                                               std::int64_t stage, bool mtp);

/// First layer of a stage.
[[nodiscard]] std::int64_t first_layer(const Layout& layout, std::int64_t stage);

/// Key and value heads that one rank holds: at least one, so several ranks may hold the same.
[[nodiscard]] std::int64_t local_kv_heads(const ModelSpec& model, std::int64_t tp) noexcept;

[[nodiscard]] std::int64_t ceil_div(std::int64_t a, std::int64_t b) noexcept;

template <class T>
void check_range(const char* name, T value, T low, T high) {
  if (!(value >= low && value <= high))
    throw Error(Errc::invalid_argument,
                fmt::format("{} {}: expected a number in [{}, {}]", name, value, low, high));
}

/// Fill the stages of `plan` in; its layout is resolved.
void plan_training(const ModelSpec& model, MemoryPlan& plan);
void plan_serving(const ModelSpec& model, MemoryPlan& plan);

}  // namespace shunt::plan
