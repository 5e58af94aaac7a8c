#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <shunt/core/view.h>

namespace shunt {

/// What makes logits of tokens; D elements of a token, E experts, h inner elements.
enum class GateArch : std::uint8_t {
  linear,        ///< x W + b
  mlp,           ///< gelu(x W1 + b1) W2 + b2, h = max(64, D / 2)
  mlp_hadamard,  ///< (m * x) W + b with m = gelu(x W1 + b1) W2 + b2 of D elements, h = D
  cosine,        ///< scale * cos(x W + b, s_e), h = 256; scale = exp(min(theta, ln 100)) is learnt (Tutel)
};
/// Names linear, mlp, mlp-hadamard, cosine; '_' counts as '-'.
/// Errors: Errc::invalid_argument on an unknown name, with the nearest one.
[[nodiscard]] GateArch parse_gate_arch(std::string_view name);

struct GateNetworkConfig {
  GateArch arch = GateArch::linear;
  std::int64_t hidden = 1;       ///< D
  std::int32_t num_experts = 1;  ///< E
  std::int64_t inner = 0;        ///< h; 0: as above. mlp_hadamard: elements between its two layers
};

/// One parameter tensor inside the flat parameters.
struct ParameterSlice {
  std::string name;
  std::int64_t offset = 0;
  std::int64_t rows = 0, cols = 0;  ///< Row-major; weights are [in, out]
};

/// The network before a gate. Parameters are one flat vector, so that an optimiser or an all-reduce needs no list.
/// Result:  sums are made in Real, in a fixed order.
/// Threads: const members may be called side by side, each with its own trace.
/// Source:  linear, mlp, mlp_hadamard: moe-routing-bench (gelu by erf); cosine: Tutel's CosineTopKGate.
template <class Real>
class GateNetwork {
 public:
  /// What backward needs of a forward.
  struct Trace {
    std::vector<Real> before;  ///< [T, h] before gelu; cosine: the projection
    std::vector<Real> after;   ///< [T, h] behind it; cosine: the projection over its length
    std::vector<Real> mixed;   ///< [T, D], mlp_hadamard: what the last layer reads
    std::vector<Real> factor;  ///< [T, D], mlp_hadamard: m
  };

  /// Weights normal with deviation 1 / sqrt(inputs), the s_e of cosine with 0.01, biases 0, theta ln 2.
  /// Errors: Errc::invalid_argument with the size and what is allowed.
  GateNetwork(const GateNetworkConfig& config, std::uint64_t seed);

  [[nodiscard]] const GateNetworkConfig& config() const noexcept { return config_; }
  [[nodiscard]] const std::vector<ParameterSlice>& layout() const noexcept { return layout_; }
  [[nodiscard]] std::vector<Real>& parameters() noexcept { return parameters_; }
  [[nodiscard]] const std::vector<Real>& parameters() const noexcept { return parameters_; }

  /// Writes logits [T, E] of x [T, D].
  /// Errors: Errc::invalid_argument on shapes.
  void forward(View2<const Real> x, View2<Real> logits, Trace& trace) const;

  /// Adds to `grad_parameters` (size of parameters()) and, where it has data, to `grad_x` [T, D]. `trace` is that of
  /// forward with this x and these parameters.
  /// Errors: Errc::invalid_argument on shapes.
  void backward(View2<const Real> x, const Trace& trace, View2<const Real> grad_logits,
                std::span<Real> grad_parameters, View2<Real> grad_x) const;

 private:
  std::int64_t add(const char* name, std::int64_t rows, std::int64_t cols);
  void cosine_forward(View2<const Real> x, View2<Real> logits, Trace& trace) const;
  void cosine_backward(View2<const Real> x, const Trace& trace, View2<const Real> grad_logits,
                       std::span<Real> grad_parameters, View2<Real> grad_x) const;

  GateNetworkConfig config_;
  std::vector<ParameterSlice> layout_;
  std::vector<Real> parameters_;
};

}  // namespace shunt
