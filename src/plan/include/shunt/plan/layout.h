#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <shunt/cluster/model.h>

namespace shunt::plan {

/// How a model is spread over GPUs. Attention is divided among tp * cp * dp * pp of them, routed experts among
/// etp * ep * edp * pp of the same ones; pp divides the layers.
struct Layout {
  std::int64_t tp = 1;                 ///< Tensor parallel
  std::int64_t pp = 1;                 ///< Pipeline stages
  std::int64_t ep = 1;                 ///< Expert parallel
  std::int64_t dp = 1;                 ///< Data parallel
  std::int64_t cp = 1;                 ///< Context parallel: a sequence is divided
  std::int64_t etp = 0;                ///< Tensor parallel of experts; 0: tp where ep is 1, else 1
  std::int64_t redundant_experts = 0;  ///< Copies of experts of a layer beyond the first, all ranks together
  std::vector<std::int64_t>
      stage_layers;  ///< Layers of each stage; empty: evenly, the first ones get the rest

  [[nodiscard]] std::int64_t world() const noexcept { return tp * cp * dp * pp; }
  /// Ranks that hold the same experts.
  [[nodiscard]] std::int64_t edp() const noexcept { return tp * cp * dp / (etp * ep); }
};

/// The layout with its defaults filled in, after every check against the model.
/// Errors: Errc::invalid_argument names the numbers that do not fit and what they must divide.
[[nodiscard]] Layout resolve(Layout layout, const ModelSpec& model);

}  // namespace shunt::plan
