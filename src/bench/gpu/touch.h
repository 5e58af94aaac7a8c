#pragma once

#include <cstdint>

#include <shunt/pack/cuda.h>

namespace shunt::bench {

/// The touch phase over rows in device memory: y = x * scale * expert_factor(expert), rounded once.
struct GpuTouch {
  cuda::DeviceRows rows;                        ///< [N, H]; data null: row_pointers has them
  const void* const* row_pointers = nullptr;    ///< [N]
  const float* scales = nullptr;                ///< [N, num_scales] dense, for rows; null without scales
  const void* const* scale_pointers = nullptr;  ///< [N], for row_pointers
  std::int64_t num_scales = 0;                  ///< Of a row
  std::int64_t scale_block = 128;
  const std::int32_t* starts = nullptr;  ///< [L + 1] first row of each local expert
  const std::int32_t* counts = nullptr;  ///< [L] rows that carry tokens, from there on
  std::int32_t num_experts = 0;          ///< L
  std::int32_t first_expert = 0;         ///< Of this rank, among all
  std::int64_t max_rows = 0;             ///< Bound of N, known to the host
  std::int64_t hidden = 0;
  cuda::DeviceRows outputs;  ///< [N, H] f32, f16 or bf16
};

/// On a CUDA stream, and on the CPU, where all pointers are of host memory. Errors: Errc::internal with CUDA's words.
void touch_on_stream(const GpuTouch& touch, cuda::Stream stream);
void touch_on_cpu(const GpuTouch& touch);

}  // namespace shunt::bench
