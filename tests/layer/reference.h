#pragma once

#include <cstdint>
#include <vector>

#include <shunt/layer/moe_layer.h>

namespace shunt::test {

/// A layer with the gate softk and a linear router, in double and in plain loops, written apart from the library. Weights
/// lie as in MoeLayer, those of all experts one behind the other.
struct Reference {
  MoeLayerConfig config;
  std::vector<double> router, experts, shared;

  /// The weights of a layer of one process.
  explicit Reference(MoeLayer& layer);

  /// out [T, H] of x [T, H]; `aux` gets balance loss and z-loss.
  [[nodiscard]] std::vector<double> forward(const std::vector<double>& x, double& aux) const;

  /// Sum of out * by, plus the auxiliary losses.
  [[nodiscard]] double loss(const std::vector<double>& x, const std::vector<double>& by) const;
};

/// Central difference of the loss by one number, which is put back.
[[nodiscard]] double slope(double& number, const Reference& reference, const std::vector<double>& x,
                           const std::vector<double>& by);

}  // namespace shunt::test
