#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <shunt/cluster/machine.h>

namespace shunt {

/// Type in which a matrix product multiplies; accumulation is wider.
enum class MathType { bf16, fp8, fp4 };
/// bf16, fp8, fp4. Errors of the second: Errc::invalid_argument with the nearest.
[[nodiscard]] const char* math_type_name(MathType type) noexcept;
[[nodiscard]] MathType parse_math_type(const std::string& name);

/// Shares of data sheet rates that kernels reach. Defaults and where they come from: docs/cost_model.md, "Rooflines".
struct Efficiency {
  double matrix = 0.75;         ///< Large products, of the dense rate
  double grouped_matrix = 0.7;  ///< Products of many experts in one launch
  double attention = 0.6;       ///< Fused attention, forward
  double attention_backward = 0.5;
  double elementwise = 0.9;  ///< Of the HBM rate the machine already has
  double tile = 128;         ///< Rows and columns of a thread block's output tile
};

/// Time of one kernel and what bounds it.
struct KernelTime {
  double us = 0;
  double flops = 0;
  double bytes = 0;
  bool memory_bound = false;
};

/// `count` products [m, k] x [k, n] in one launch, with operands and result in HBM.
/// Result: launch + max(flops / (peak share fill), bytes / HBM), where fill is the part of the multiprocessors' tiles that
///         hold a result: m and n rounded up to tiles, tiles to whole waves (at most what stream-k leaves of a wave).
/// Errors: Errc::invalid_argument where the GPU has no rate for the type.
/// Source: roofline of Williams et al. 2009; tile and wave quantisation as NVIDIA's matrix multiplication guide has it.
[[nodiscard]] KernelTime gemm_time(const Machine& machine, double m, double n, double k, double count,
                                   MathType type, double weight_bytes_per_element, double share,
                                   double tile = 128);

/// Fused attention of `sequences`, each of `queries` new tokens that see `keys` keys on average.
struct AttentionShape {
  double sequences = 1;
  double queries = 1;
  double keys = 1;
  double heads = 1;
  double kv_heads = 1;
  double qk_dim = 128;  ///< Of one head
  double value_dim = 128;
  double kv_bytes = 0;  ///< Of one key position, all heads of this rank, as stored
};
/// Result: launch + max(flops / (bf16 rate share), bytes / HBM); flops 2 heads queries keys (qk_dim + value_dim).
[[nodiscard]] KernelTime attention_time(const Machine& machine, const AttentionShape& shape, double share);

/// Kernel that only moves bytes. Result: launch + bytes / (HBM share).
[[nodiscard]] KernelTime elementwise_time(const Machine& machine, double bytes, double share);

}  // namespace shunt
