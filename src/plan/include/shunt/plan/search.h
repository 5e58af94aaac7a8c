#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include <shunt/plan/breakdown.h>

namespace shunt::plan {

/// What a search may vary and what it must reach.
struct SearchOptions {
  /// Model, phase, sequence lengths, formats; layout, microbatch, recomputation, ZeRO, schedule and batch of these are
  /// what is sought.
  PlanOptions base;
  std::int64_t most_tp = 0;    ///< 0: the GPUs of a scale-up domain
  std::int64_t most_pp = 0;    ///< 0: layers
  std::int64_t most_gpus = 0;  ///< Serving: of one instance; 0: all. Training takes all
  double ttft_ms = 0;          ///< Prefill: first token by then; 0: no target
  double tpot_ms = 0;          ///< Decode
  double tokens_per_s = 0;     ///< Of all GPUs, at least
  std::vector<std::int64_t>
      batches;              ///< Serving: sequences (decode) or prompts (prefill) to try; empty: powers of two
  std::int64_t shown = 10;  ///< Plans in the table
};

struct SearchResult {
  std::int64_t tried = 0;
  std::int64_t feasible = 0;     ///< Fit the memory and meet the targets
  std::vector<PlanResult> best;  ///< By tokens/s for each GPU, then by latency, then by order of trial
  std::vector<PlanResult>
      front;  ///< Not dominated in tokens/s for each GPU and in the second aim of the phase, sorted
  /// Why the others were left out, with one example of each.
  struct Rejected {
    std::string reason;
    std::int64_t count = 0;
    std::string example;
  };
  std::vector<Rejected> rejected;
};

/// Tries every layout of divisors. The second aim is memory in training, time to first token in prefill, time between
/// tokens in decode.
/// Result: deterministic; pruned are only plans that cannot be (a layout that does not divide is tried with one batch).
/// Errors: Errc::invalid_argument for targets that do not belong to the phase, numbers out of range, and where no layout
///         can be priced (with the first reason). Plans that are priced, and do not fit or come too late, are no error:
///         `best` is empty and `rejected` says why.
[[nodiscard]] SearchResult search_plans(const ModelSpec& model, const Machine& machine,
                                        const SearchOptions& options, const CostModel* fits);

[[nodiscard]] Report report_search(const ModelSpec& model, const Machine& machine,
                                   const SearchOptions& options, const CostModel* fits);

}  // namespace shunt::plan
