#pragma once

#include <cstdint>

#include <shunt/alltoall/cuda.h>
#include <shunt/core/error.h>

#include "frame.h"

namespace shunt::cuda::detail {

/// Where everything lies, for R ranks of which some may be masked. `load_store`: peers are stored to, so nothing is staged.
/// `config` has passed check_config() and check_gpu_config().
[[nodiscard]] Places plan_places(const AllToAllConfig& config, std::int32_t num_ranks, bool load_store,
                                 bool expert_output);

/// The frame of `rank`, without its memory and without what depends on who lives.
[[nodiscard]] Frame make_frame(const AllToAllConfig& config, const Places& places, std::int32_t num_ranks,
                               std::int32_t rank);

/// What GPUs do not do, or not yet. Errors: invalid_argument names the field and what it must be.
void check_gpu_config(const AllToAllConfig& config, std::int32_t num_ranks);

/// @name What callers pass, looked at by the host
/// Errors: invalid_argument; nothing was launched.
/// @{
void check_tokens(const AllToAllConfig& config, std::int32_t rank, const TokenInput& input,
                  const ExpertIds& ids);
void check_results(const AllToAllConfig& config, std::int32_t rank, const DeviceRows& results, bool any_rows);
void check_sum(const AllToAllConfig& config, std::int32_t rank, const Weights& weights, const DeviceRows& out,
               std::int64_t num_tokens, bool accumulate);
/// @}

/// The error for what kernels wrote, in the words of the CPU. finding.trouble must not be none.
[[nodiscard]] Error error_of(const AllToAllConfig& config, std::int32_t rank, const Finding& finding);

}  // namespace shunt::cuda::detail
