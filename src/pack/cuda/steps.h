#pragma once

// The calls of <shunt/pack/cuda.h> as launches on a launcher: a stream of a GPU, or the emulator of the tests. A launcher
// has launch<Kernel>(shape, args), which queues, and processors(), the blocks that run side by side. Arguments have been
// checked (checks.h).
#include <algorithm>
#include <cstdint>

#include <shunt/device/context.h>
#include <shunt/pack/cuda.h>

#include "combine_kernel.h"
#include "move_kernels.h"
#include "plan_kernels.h"
#include "plan_sizes.h"

namespace shunt::cuda::detail {

/// Blocks that a processor holds of kernels of 256 threads with few registers.
inline constexpr std::int64_t kBlocksPerProcessor = 8;

/// Blocks for `tasks` tasks of one warp each: not more than fit the device, or the limit.
template <class Launcher>
std::int32_t blocks_for(const Launcher& launcher, std::int64_t tasks, std::int32_t threads,
                        LaunchLimit limit) {
  const std::int64_t wanted = (tasks * device::kWarpSize + threads - 1) / threads;
  const std::int64_t most =
      limit.max_blocks > 0 ? limit.max_blocks : launcher.processors() * kBlocksPerProcessor;
  return static_cast<std::int32_t>(std::clamp<std::int64_t>(wanted, 1, most));
}

template <class Launcher>
void make_plan(Launcher& launcher, const PlanInput& input, const Plan& plan, void* workspace,
               LaunchLimit limit) {
  const PlanSizes sizes(input);
  auto* memory = static_cast<std::byte*>(workspace);
  PlanArgs args;
  args.input = input;
  args.plan = plan;
  args.unit = sizes.unit;
  args.num_units = sizes.num_units;
  args.tile = std::min(input.num_experts, kTile);
  args.per_unit = reinterpret_cast<std::int32_t*>(memory);
  args.first_invalid = reinterpret_cast<std::int32_t*>(memory + sizes.per_unit_bytes);

  device::LaunchShape walk{blocks_for(launcher, sizes.num_units, CountUnits::kThreads, limit),
                           CountUnits::kThreads, CountUnits::kThreads / kWarpSize * args.tile * 4};
  // Rows to mark as padding are work for more blocks than the units need.
  device::LaunchShape count = walk;
  if (plan.selections != nullptr)
    count.blocks = std::max(
        count.blocks, blocks_for(launcher, input.max_rows / kWarpSize / 8, CountUnits::kThreads, limit));
  launcher.template launch<CountUnits>(count, args);
  const std::int64_t columns = (std::int64_t{input.num_experts} + kWarpSize - 1) / kWarpSize;
  launcher.template launch<ScanUnits>(
      {blocks_for(launcher, columns * (ScanUnits::kThreads / kWarpSize), ScanUnits::kThreads, limit),
       ScanUnits::kThreads, ScanUnits::kThreads * 4},
      args);
  launcher.template launch<ScanExperts>({1, ScanExperts::kThreads, ScanExperts::kSharedBytes}, args);
  launcher.template launch<PlaceUnits>(walk, args);
}

/// Widest unit that the addresses and strides of both sides are multiples of.
inline std::int64_t unit_bytes(const DeviceRows& from, const DeviceRows& to) {
  const auto all = static_cast<std::uint64_t>(reinterpret_cast<std::uintptr_t>(from.data) |
                                              reinterpret_cast<std::uintptr_t>(to.data)) |
                   static_cast<std::uint64_t>(from.stride_bytes | to.stride_bytes);
  return all % 16 == 0 ? 16 : all % 4 == 0 ? 4 : all % 2 == 0 ? 2 : 1;
}

/// Launches Kernel<16>, <4>, <2> or <1> over `rows` rows.
template <template <std::int32_t> class Kernel, class Launcher, class Args>
void launch_copy(Launcher& launcher, std::int64_t rows, std::int64_t unit, const Args& args,
                 LaunchLimit limit) {
  const std::int64_t part = unit * kUnitsPerLane * kWarpSize;
  const std::int64_t tasks = rows * std::max<std::int64_t>((args.row_bytes + part - 1) / part, 1);
  const device::LaunchShape shape{blocks_for(launcher, tasks, Kernel<16>::kThreads, limit),
                                  Kernel<16>::kThreads, 0};
  if (unit == 16) return launcher.template launch<Kernel<16>>(shape, args);
  if (unit == 4) return launcher.template launch<Kernel<4>>(shape, args);
  if (unit == 2) return launcher.template launch<Kernel<2>>(shape, args);
  launcher.template launch<Kernel<1>>(shape, args);
}

inline std::int64_t scales_of(const Scales& scales, std::int64_t hidden) {
  return scales.type == ScaleType::none ? 0 : (hidden + scales.block - 1) / scales.block;
}

template <class From, class Launcher>
void launch_quantise(Launcher& launcher, const GatherArgs& args, LaunchLimit limit) {
  const Gather& g = args.gather;
  const std::int64_t blocks = (g.hidden + g.scales.block - 1) / g.scales.block;
  const std::int64_t per_task = kWarpSize / lanes_per_block(g.scales.block);
  using E4m3 = GatherQuantise<From, device::F8e4m3>;
  using E5m2 = GatherQuantise<From, device::F8e5m2>;
  const std::int64_t tasks = g.num_tokens * ((blocks + per_task - 1) / per_task);
  const device::LaunchShape shape{blocks_for(launcher, tasks, E4m3::kThreads, limit), E4m3::kThreads, 0};
  if (g.to.dtype == DType::f8e4m3) return launcher.template launch<E4m3>(shape, args);
  launcher.template launch<E5m2>(shape, args);
}

template <class Launcher>
void gather(Launcher& launcher, const Gather& g, LaunchLimit limit) {
  if (g.num_tokens == 0 || g.hidden == 0) return;
  const GatherArgs args{g, g.hidden * dtype_bytes(g.from.dtype), scales_of(g.scales, g.hidden)};
  if (g.from.dtype == g.to.dtype)
    return launch_copy<GatherCopy>(launcher, g.num_tokens, unit_bytes(g.from, g.to), args, limit);
  if (g.from.dtype == DType::f32) return launch_quantise<device::F32>(launcher, args, limit);
  if (g.from.dtype == DType::f16) return launch_quantise<device::F16>(launcher, args, limit);
  launch_quantise<device::Bf16>(launcher, args, limit);
}

template <class Launcher>
void scatter(Launcher& launcher, const Scatter& s, LaunchLimit limit) {
  if (s.num_rows == 0 || s.hidden == 0) return;
  const ScatterArgs args{s, s.hidden * dtype_bytes(s.from.dtype), scales_of(s.to_scales, s.hidden)};
  launch_copy<ScatterCopy>(launcher, s.num_rows, unit_bytes(s.from, s.to), args, limit);
}

template <class Row, class Launcher>
void launch_combine(Launcher& launcher, const Combine& c, LaunchLimit limit) {
  using ToF32 = CombineRows<Row, device::F32>;
  const std::int64_t part = std::int64_t{kColumns} * kWarpSize;
  const std::int64_t tasks = c.num_tokens * ((c.hidden + part - 1) / part);
  const device::LaunchShape shape{blocks_for(launcher, tasks, ToF32::kThreads, limit), ToF32::kThreads, 0};
  if (c.out.dtype == DType::f32) return launcher.template launch<ToF32>(shape, CombineArgs{c});
  if (c.out.dtype == DType::f16)
    return launcher.template launch<CombineRows<Row, device::F16>>(shape, CombineArgs{c});
  launcher.template launch<CombineRows<Row, device::Bf16>>(shape, CombineArgs{c});
}

template <class Launcher>
void combine(Launcher& launcher, const Combine& c, LaunchLimit limit) {
  if (c.num_tokens == 0 || c.hidden == 0) return;
  if (c.rows.dtype == DType::f32) return launch_combine<device::F32>(launcher, c, limit);
  if (c.rows.dtype == DType::f16) return launch_combine<device::F16>(launcher, c, limit);
  launch_combine<device::Bf16>(launcher, c, limit);
}

}  // namespace shunt::cuda::detail
