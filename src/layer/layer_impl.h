#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <vector>

#include <shunt/layer/moe_layer.h>

#include "gate_step.h"
#include "row_exchange.h"
#include "workers.h"

namespace shunt {

struct MoeLayer::Impl {
  Impl(const MoeLayerConfig& config_in, Transport* transport);

  MoeLayerConfig config;
  detail::Workers workers;
  detail::GateStep gate;
  std::vector<float> gate_bias;
  std::optional<ExpertFfn> experts, shared;
  std::unique_ptr<detail::RowExchange> exchange;
  MoeInput input;
  bool ran_forward = false;
  MoeStep step;
  detail::RowMemory sum;          ///< [T, H] float32, where sums of tokens begin
  detail::RowMemory shared_rows;  ///< [T, H] of the shared experts
  std::vector<std::int64_t> shared_starts{0}, shared_counts{0};

  /// The shared experts see all tokens.
  [[nodiscard]] ExpertRows shared_layout() const {
    return {shared_starts, shared_counts, false, shared_counts[0]};
  }
  /// sum [T, H] += shared_rows, or = where `add` is false.
  void add_shared(bool add);
};

namespace detail {
/// Milliseconds since the last call.
class Lap {
 public:
  void end(double& to) {
    const auto now = std::chrono::steady_clock::now();
    to = std::chrono::duration<double, std::milli>(now - last_).count();
    last_ = now;
  }

 private:
  std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};
}  // namespace detail

}  // namespace shunt
