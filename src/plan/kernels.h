#pragma once

#include <cstdint>
#include <string>

#include <shunt/cluster/calibration.h>
#include <shunt/cluster/machine.h>
#include <shunt/cluster/model.h>
#include <shunt/plan/step_time.h>

namespace shunt::plan {

/// Multiprocessors that normal dispatch and combine take where nobody says.
inline constexpr std::int64_t kNormalSms = 24;

/// Why `kernels` cannot serve the exchange of one expert-parallel group; empty where they can, as tiers always can.
/// `slots` are experts with redundant ones, `tokens` those of one rank in a step.
/// Source: the limits that planner.md of docs lists under "shunt plan alltoall".
[[nodiscard]] std::string cannot_serve(ExchangeKernels kernels, const ModelSpec& model,
                                       const Machine& machine, const Group& group, std::int64_t slots,
                                       std::int64_t tokens, const std::string& payload);

/// Buffers of one rank that such kernels reserve beside the caller's rows; 0 for tiers.
[[nodiscard]] double kernel_buffer_bytes(ExchangeKernels kernels, const ModelSpec& model, std::int64_t ranks,
                                         std::int64_t slots, std::int64_t tokens, std::int64_t sms,
                                         const std::string& dispatch_payload,
                                         const std::string& combine_payload);

/// One exchange of an expert-parallel group, for fitted kernels.
struct KernelExchange {
  std::string regime;   ///< Of the fit, as CostCase has it
  std::string variant;  ///< Likewise
  std::int64_t ranks = 0, domains = 0;
  std::int64_t slots = 0;   ///< Experts with redundant ones
  std::int64_t tokens = 0;  ///< Of one rank
  std::int64_t sms = 0;     ///< Of normal kernels
  double imbalance = 1;
  bool limited = false;  ///< A token's limit to some groups of experts is known (GroupLimit::holds)
  std::string dispatch_payload, combine_payload;
};

struct ExchangePrediction {
  Prediction dispatch, combine;
};

/// Errors: as CostModel::predict.
[[nodiscard]] ExchangePrediction predict_exchange(const CostModel& fits, const ModelSpec& model,
                                                  const Machine& machine, const KernelExchange& exchange);

/// What is known in closed form of a token that may use some groups of experts only.
enum class GroupLimit {
  none,    ///< The model has no limit
  holds,   ///< Groups and places divide one another
  unknown  ///< They do not: priced as if there were none
};
[[nodiscard]] GroupLimit group_limit(const ModelSpec& model, std::int64_t ranks, std::int64_t domains);
/// The sentence that says so where it is unknown.
[[nodiscard]] std::string group_limit_note(const ModelSpec& model, std::int64_t ranks, std::int64_t domains);

}  // namespace shunt::plan
