#pragma once

// The four calls as launches on a launcher: a stream of a GPU, or the emulator of the tests (pack/cuda/steps.h says what a
// launcher is). Arguments have been checked.
#include <algorithm>
#include <cstddef>
#include <cstdint>

#include <shunt/device/context.h>

#include "frame.h"
#include "net.h"
#include "pack/cuda/steps.h"
#include "receive_kernels.h"
#include "return_kernels.h"
#include "send_kernels.h"

namespace shunt::cuda::detail {

/// Which selections are whose: the plan over the keys that PrepareSend has written, for `share` tokens at most.
template <class Launcher>
void plan_share(Launcher& launcher, const Frame& f, std::int64_t share, LaunchLimit limit) {
  PlanInput input;
  input.selections.ids = f.own<std::int32_t>(f.at.plan_ids_at);
  input.selections.num_tokens = share;
  input.selections.top_k = 2 * f.top_k;
  input.selections.live_tokens = &f.state().share_tokens;
  input.num_experts = f.partition.num_experts + f.num_ranks;
  input.max_rows = share * 2 * f.top_k;
  Plan plan;
  plan.counts = f.own<std::int32_t>(f.at.plan_counts_at);
  plan.starts = f.own<std::int32_t>(f.at.plan_starts_at);
  plan.positions = f.own<std::int32_t>(f.at.plan_positions_at);
  plan.selections = f.own<std::int32_t>(f.at.plan_selections_at);
  plan.status = f.own<PlanStatus>(f.at.plan_status_at);
  make_plan(launcher, input, plan, f.own<std::byte>(f.at.plan_workspace_at), limit);
}

/// Tasks of a warp for `items` items of a thread.
inline std::int64_t tasks_for(std::int64_t items) {
  return (items + kWarpSize - 1) / kWarpSize;
}

template <template <std::int32_t, class> class Kernel, class Target, class Launcher>
void launch_send(Launcher& launcher, std::int64_t unit, std::int64_t rows, std::int64_t items,
                 const SendArgs<Target>& args, LaunchLimit limit) {
  const std::int64_t part = unit * kUnitsPerLane * kWarpSize;
  const std::int64_t tasks = std::max(
      rows * std::max<std::int64_t>((args.frame.at.row_bytes + part - 1) / part, 1), tasks_for(items));
  constexpr std::int32_t kShared = Kernel<16, Target>::kSharedBytes;
  if (unit == 16) return launch_tasks<Kernel<16, Target>>(launcher, tasks, args, limit, kShared);
  if (unit == 4) return launch_tasks<Kernel<4, Target>>(launcher, tasks, args, limit, kShared);
  if (unit == 2) return launch_tasks<Kernel<2, Target>>(launcher, tasks, args, limit, kShared);
  launch_tasks<Kernel<1, Target>>(launcher, tasks, args, limit, kShared);
}

template <class From, class Target, class Launcher>
void launch_send_quantise(Launcher& launcher, std::int64_t rows, std::int64_t items,
                          const SendArgs<Target>& args, LaunchLimit limit) {
  using E4m3 = SendQuantise<From, device::F8e4m3, Target>;
  using E5m2 = SendQuantise<From, device::F8e5m2, Target>;
  const Frame& f = args.frame;
  const std::int64_t tasks = std::max(rows * quantise_parts(f.hidden, f.scale_block), tasks_for(items));
  if (f.payload == DType::f8e4m3) return launch_tasks<E4m3>(launcher, tasks, args, limit, E4m3::kSharedBytes);
  launch_tasks<E5m2>(launcher, tasks, args, limit, E5m2::kSharedBytes);
}

template <class Target, class Launcher>
void send_rows(Launcher& launcher, const Frame& f, const SendCall& call, std::int64_t share,
               const Target& target, bool in_place) {
  SendArgs<Target> args;
  args.frame = f;
  args.target = target;
  args.tokens = call.input.tokens;
  args.scales = call.input.scales;
  args.in_place = in_place;
  const std::int64_t items =
      std::max(share * f.top_k, std::int64_t{f.num_ranks} * (f.num_ranks + f.most_experts));
  if (f.payload == f.token_dtype) {
    const DeviceRows slots{nullptr, f.payload, f.at.slot_stride};
    return launch_send<SendCopy>(launcher, unit_bytes(call.input.tokens, slots), share, items, args,
                                 call.limit);
  }
  if (f.token_dtype == DType::f32)
    return launch_send_quantise<device::F32>(launcher, share, items, args, call.limit);
  if (f.token_dtype == DType::f16)
    return launch_send_quantise<device::F16>(launcher, share, items, args, call.limit);
  launch_send_quantise<device::Bf16>(launcher, share, items, args, call.limit);
}

template <class Launcher, class Net>
void dispatch_send(Launcher& launcher, const Net& net, const Frame& f, const SendCall& call) {
  const std::int64_t given = call.input.num_tokens;
  const std::int64_t share = token_share(given, f.members, 0).end;  // the largest, if all count
  launch_tasks<PrepareSend>(launcher, tasks_for(given * f.top_k), PrepareArgs{f, call}, call.limit,
                            PrepareSend::kSharedBytes);
  plan_share(launcher, f, share, call.limit);
  if constexpr (Net::kLoadStore) {
    send_rows(launcher, f, call, share, ToPeers{net}, false);
  } else {
    const bool in_place = call.input.tokens.data == f.local + f.at.staging_at &&
                          call.input.tokens.stride_bytes == f.at.slot_stride;
    send_rows(launcher, f, call, share, ToStaging{}, in_place);
    launch_tasks<PutTokens<Net>>(launcher, share * f.top_k + f.num_ranks, PutArgs<Net>{f, net}, call.limit);
  }
}

template <class Launcher, class Net>
void dispatch_recv(Launcher& launcher, const Net& net, const Frame& f, const ReceiveCall& call) {
  launcher.template launch<Arrive<Net>>({1, Arrive<Net>::kThreads, Arrive<Net>::kSharedBytes},
                                        ArriveArgs<Net>{f, net});
  const std::int64_t cells = std::int64_t{f.local_experts()} * f.num_ranks;
  // Padding to fill is work for more blocks than the cells are.
  const bool pads = f.delivery == Delivery::view || f.padding != PaddingRows::untouched;
  launch_tasks<PlaceEntries>(launcher, pads ? std::max(cells, f.at.max_rows) : cells, PlaceArgs{f},
                             call.limit);
  if (f.delivery == Delivery::view) return;
  const std::int64_t parts = (f.at.row_bytes + CopyRows::Part::kBytes - 1) / CopyRows::Part::kBytes;
  launch_tasks<CopyRows>(launcher, f.at.max_arriving * parts, PlaceArgs{f}, call.limit);
}

template <template <std::int32_t> class Kernel, class Launcher, class Args>
void launch_results(Launcher& launcher, std::int64_t unit, std::int64_t rows, const Args& args,
                    LaunchLimit limit, std::int32_t shared_bytes) {
  const std::int64_t part = unit * kUnitsPerLane * kWarpSize;
  const std::int64_t tasks = rows * ((args.frame.at.result_bytes + part - 1) / part);
  if (unit == 16) return launch_tasks<Kernel<16>>(launcher, tasks, args, limit, shared_bytes);
  if (unit == 4) return launch_tasks<Kernel<4>>(launcher, tasks, args, limit, shared_bytes);
  if (unit == 2) return launch_tasks<Kernel<2>>(launcher, tasks, args, limit, shared_bytes);
  launch_tasks<Kernel<1>>(launcher, tasks, args, limit, shared_bytes);
}

template <class Launcher, class Net>
void combine_send(Launcher& launcher, const Net& net, const Frame& f, const ReturnCall& call) {
  const std::int64_t unit = unit_bytes(call.results, {nullptr, f.expert_dtype, f.at.result_stride});
  if constexpr (Net::kLoadStore) {
    launch_results<ReturnRows>(launcher, unit, f.at.max_arriving,
                               ReturnArgs<LoadStoreNet>{f, net, call.results}, call.limit,
                               ReturnRows<16>::kSharedBytes);
  } else {
    const bool in_place =
        call.results.data == f.local + f.at.output_at && call.results.stride_bytes == f.at.result_stride;
    launch_results<StageResults>(launcher, unit, in_place ? 0 : f.at.max_arriving,
                                 StageArgs{f, call.results, in_place}, call.limit, 0);
    launch_tasks<PutResults<Net>>(launcher, f.at.max_arriving * f.group_size + f.num_ranks,
                                  typename PutResults<Net>::Args{f, net}, call.limit);
  }
}

template <class Launcher, class Net>
void combine_recv(Launcher& launcher, const Net& net, const Frame& f, const SumCall& call) {
  launcher.template launch<Collect<Net>>({1, Collect<Net>::kThreads, Collect<Net>::kSharedBytes},
                                         ArriveArgs<Net>{f, net});
  Combine sum;
  sum.rows = {f.own<std::byte>(f.at.returns_at), f.expert_dtype, f.at.result_stride};
  sum.positions = f.own<std::int32_t>(f.at.return_positions_at);
  sum.weights = call.weights.data;
  sum.weight_stride = call.weights.row_stride;
  sum.num_tokens = call.num_tokens;
  sum.top_k = f.top_k;
  sum.live_tokens = &f.state().combine_tokens;
  sum.hidden = f.hidden;
  sum.out = call.out;
  sum.accumulate = call.accumulate;
  combine(launcher, sum, call.limit);
  if (f.masking)
    launcher.template launch<Commit<Net>>({1, Commit<Net>::kThreads, Commit<Net>::kSharedBytes},
                                          ArriveArgs<Net>{f, net});
}

}  // namespace shunt::cuda::detail
