#include <shunt/bench/workload.h>
#include <shunt/pack/kernels.h>

#include "touch.h"

namespace shunt::bench {

void touch_on_cpu(const GpuTouch& touch) {
  const PackKernels& kernels = pack_kernels();
  ScaledCopy copy{.hidden = touch.hidden,
                  .from_dtype = touch.rows.dtype,
                  .from_scale = touch.num_scales > 0 ? ScaleType::f32 : ScaleType::none,
                  .block = touch.scale_block,
                  .to_dtype = touch.outputs.dtype};
  for (std::int32_t e = 0; e < touch.num_experts; ++e) {
    copy.factor = expert_factor(touch.first_expert + e);
    for (std::int64_t row = touch.starts[e]; row < touch.starts[e] + touch.counts[e]; ++row) {
      copy.from = touch.row_pointers == nullptr
                      ? static_cast<const std::byte*>(touch.rows.data) + row * touch.rows.stride_bytes
                      : touch.row_pointers[row];
      copy.from_scales = touch.num_scales == 0             ? nullptr
                         : touch.scale_pointers == nullptr ? touch.scales + row * touch.num_scales
                                                           : touch.scale_pointers[row];
      copy.to = static_cast<std::byte*>(touch.outputs.data) + row * touch.outputs.stride_bytes;
      kernels.scaled_copy(copy);
    }
  }
}

}  // namespace shunt::bench
