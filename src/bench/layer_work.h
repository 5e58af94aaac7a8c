#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include <shunt/bench/layer_bench.h>
#include <shunt/layer/moe_layer.h>

#include "torch_plugin.h"

namespace shunt::bench {

[[nodiscard]] MoeLayerConfig layer_config(const LayerPoint& point);

/// Tokens of a rank and a gradient of the results, and what was made of them.
struct LayerData {
  std::vector<std::byte> x, by, out, grad_x;
  MoeGradients gradients;

  /// Normal, a function of seed and rank. Tokens whose K-th and next logit by `layer` are closer than float32 tells apart
  /// are drawn again, so that every implementation chooses alike.
  LayerData(const LayerPoint& point, std::int32_t rank, MoeLayer& layer);
};

void run_forward(MoeLayer& layer, const LayerPoint& point, LayerData& data);
void run_backward(MoeLayer& layer, const LayerPoint& point, LayerData& data);

/// Libtorch with the same weights and tokens; `data` gets its results with the step kRead.
/// Errors: Errc::unavailable with what libtorch says.
[[nodiscard]] std::unique_ptr<TorchWork> make_torch_layer(const LayerPoint& point, MoeLayer& layer,
                                                          LayerData& data);
void run_torch(TorchWork& work, std::int32_t step);

/// Compares with double precision. Result: empty, or what is wrong.
[[nodiscard]] std::string check_against_double(const LayerPoint& point, MoeLayer& layer,
                                               const LayerData& data);
/// Compares all of two implementations, in norm. Result: as above.
[[nodiscard]] std::string check_against(const LayerPoint& point, const LayerData& data,
                                        const LayerData& other, bool weights);

}  // namespace shunt::bench
