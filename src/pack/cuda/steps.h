#pragma once

// The calls of <shunt/pack/cuda.h> as launches on a launcher: a stream of a GPU, or the emulator of the tests. A launcher
// has launch<Kernel>(shape, args), which queues; processors(); and blocks_per_processor<Kernel>(shared_bytes), the blocks of
// that kernel that a processor runs side by side. Arguments have been checked (checks.h).
#include <algorithm>
#include <cstdint>

#include <shunt/device/context.h>
#include <shunt/pack/cuda.h>

#include "combine_kernel.h"
#include "move_kernels.h"
#include "plan_kernels.h"
#include "plan_sizes.h"

namespace shunt::cuda::detail {

/// Blocks for `tasks` tasks of one warp each: not more than run side by side on the device, or the limit. Blocks share the
/// tasks out evenly among themselves, so some that begin when others have ended would double the time.
template <class Kernel, class Launcher>
std::int32_t blocks_for(const Launcher& launcher, std::int64_t tasks, LaunchLimit limit,
                        std::int32_t shared_bytes = 0) {
  const std::int64_t wanted = (tasks * device::kWarpSize + Kernel::kThreads - 1) / Kernel::kThreads;
  const std::int64_t most = limit.max_blocks > 0
                                ? limit.max_blocks
                                : std::int64_t{launcher.processors()} *
                                      launcher.template blocks_per_processor<Kernel>(shared_bytes);
  return static_cast<std::int32_t>(std::clamp<std::int64_t>(wanted, 1, most));
}

/// Launches Kernel for `tasks` tasks of one warp each.
template <class Kernel, class Launcher>
void launch_tasks(Launcher& launcher, std::int64_t tasks, const typename Kernel::Args& args,
                  LaunchLimit limit, std::int32_t shared_bytes = 0) {
  launcher.template launch<Kernel>(
      {blocks_for<Kernel>(launcher, tasks, limit, shared_bytes), Kernel::kThreads, shared_bytes}, args);
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
  args.blocks_done = reinterpret_cast<std::uint32_t*>(args.first_invalid + sizes.num_units);

  static_assert(CountUnits::kThreads == PlaceUnits::kThreads);
  const std::int32_t tiles_bytes = CountUnits::kThreads / kWarpSize * args.tile * 4;
  // Rows to mark as padding are work for more blocks than the units need.
  const std::int64_t marks = plan.selections != nullptr ? input.max_rows / kWarpSize / 8 : 0;
  launch_tasks<CountUnits>(launcher, std::max<std::int64_t>(sizes.num_units, marks), args, limit,
                           tiles_bytes);
  const std::int64_t columns = (std::int64_t{input.num_experts} + kWarpSize - 1) / kWarpSize;
  launch_tasks<ScanUnits>(launcher, columns * (ScanUnits::kThreads / kWarpSize), args, limit,
                          ScanUnits::kSharedBytes);
  launch_tasks<PlaceUnits>(launcher, sizes.num_units, args, limit, tiles_bytes);
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
  if (unit == 16) return launch_tasks<Kernel<16>>(launcher, tasks, args, limit);
  if (unit == 4) return launch_tasks<Kernel<4>>(launcher, tasks, args, limit);
  if (unit == 2) return launch_tasks<Kernel<2>>(launcher, tasks, args, limit);
  launch_tasks<Kernel<1>>(launcher, tasks, args, limit);
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
  if (g.to.dtype == DType::f8e4m3) return launch_tasks<E4m3>(launcher, tasks, args, limit);
  launch_tasks<E5m2>(launcher, tasks, args, limit);
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
  const std::int64_t part = std::int64_t{kColumns} * kWarpSize;
  const std::int64_t tasks = c.num_tokens * ((c.hidden + part - 1) / part);
  const CombineArgs args{c};
  if (c.out.dtype == DType::f32)
    return launch_tasks<CombineRows<Row, device::F32>>(launcher, tasks, args, limit);
  if (c.out.dtype == DType::f16)
    return launch_tasks<CombineRows<Row, device::F16>>(launcher, tasks, args, limit);
  launch_tasks<CombineRows<Row, device::Bf16>>(launcher, tasks, args, limit);
}

template <class Launcher>
void combine(Launcher& launcher, const Combine& c, LaunchLimit limit) {
  if (c.num_tokens == 0 || c.hidden == 0) return;
  if (c.rows.dtype == DType::f32) return launch_combine<device::F32>(launcher, c, limit);
  if (c.rows.dtype == DType::f16) return launch_combine<device::F16>(launcher, c, limit);
  launch_combine<device::Bf16>(launcher, c, limit);
}

}  // namespace shunt::cuda::detail
