#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include <shunt/cluster/calibration.h>
#include <shunt/cluster/machine.h>
#include <shunt/cluster/model.h>
#include <shunt/cluster/volume.h>
#include <shunt/plan/report.h>

namespace shunt::plan {

/// deepep-normal, deepep-ll, deepep-v2, flashinfer, pplx, nccl, shunt.
[[nodiscard]] const std::vector<std::string>& exchange_libraries();

/// One of Shunt's own exchanges, for whoever knows what it reserves.
struct ShuntExchange {
  std::int64_t tokens = 0;
  std::int64_t experts = 0;  ///< With redundant ones
  std::int64_t top_k = 0;
  std::int64_t hidden = 0;
  std::int64_t ranks = 0;
  std::int64_t near = 0;  ///< Ranks in one scale-up domain
  bool hierarchical = false;
  bool presum = false;
  bool fp8 = false;  ///< Rows in f8e4m3 with a scale for each 128 elements, else bf16
};

/// One expert-parallel exchange for which kernels, path and precision are sought.
struct ExchangeOptions {
  std::int64_t ep = 8;        ///< Ranks; from rank 0, GPU by GPU
  std::int64_t tokens = 128;  ///< Of one rank in a step
  std::int64_t redundant_experts = 0;
  std::vector<std::string> libraries;  ///< Empty: all
  std::vector<std::string>
      dispatch_payloads;  ///< As row_bytes(); empty: of bfloat16, fp8_block128 and nvfp4 what the GPU multiplies in
  std::string combine_payload = "bfloat16";
  std::int64_t sms =
      0;  ///< For kernels that take a number of multiprocessors; 0: what the library would take
  double imbalance = 1;    ///< Load of the busiest rank over the mean
  bool overlapped = true;  ///< Computation runs beside it: DeepEP V2 then takes few multiprocessors
  /// Bytes that Shunt reserves on one rank, which the library shunt::alltoall knows and this one does not depend on.
  /// Empty: not known. Errors (Errc::invalid_argument) become the reason why Shunt is left out.
  std::function<double(const ShuntExchange&)> shunt_bytes;
};

/// One way to do it.
struct ExchangeChoice {
  std::string library;
  ExchangePath path = ExchangePath::flat;
  std::string dispatch_payload;
  bool deduplicated =
      true;              ///< A token goes once to a rank (or domain) however many of its experts are there
  bool presum = false;   ///< Results are summed before they cross
  std::int64_t sms = 0;  ///< Multiprocessors that it occupies; 0: all of them, for a moment
  std::int64_t qps = 0;  ///< Queue pairs of a rank; 0: not set by the caller
  std::int64_t near_chunk = 0;  ///< Tokens that DeepEP normal sends at once over NVLink, and over the network
  std::int64_t far_chunk = 0;
  double near_bytes =
      0;  ///< That one rank sends, dispatch and combine: over the scale-up fabric, over its cards
  double far_bytes = 0;
  double dispatch_us = 0;
  double combine_us = 0;
  bool fitted = false;       ///< Times from fitted kernels; else from bytes and rates of tiers
  bool measured = false;     ///< The fits are to measurements on this GPU, not on another by its data sheet
  std::string fit_hardware;  ///< On which the fitted kernels were measured; empty where !fitted
  double buffer_bytes = -1;  ///< Of one rank; -1: not known

  [[nodiscard]] double us() const noexcept { return dispatch_us + combine_us; }
};

/// Choices that can serve, the fastest first, and why others cannot.
struct ExchangePlan {
  std::vector<ExchangeChoice> choices;
  std::vector<std::string> refused;  ///< "library: reason"
  std::vector<std::string> notes;    ///< What could not be counted exactly
  std::int32_t domains = 1;
  Destinations destinations;  ///< Of a token; nodes are scale-up domains
};

/// Errors: Errc::invalid_argument for models without experts, groups larger than the machine or than the experts, numbers
///         out of range, unknown libraries and payloads with the nearest, and where no library fits (with the reasons).
[[nodiscard]] ExchangePlan plan_exchange(const ModelSpec& model, const Machine& machine,
                                         const ExchangeOptions& options, const CostModel* fits);

/// Report with the choices, Shunt's configuration for its fastest one, and what to set in the environment.
[[nodiscard]] Report report_exchange(const ModelSpec& model, const Machine& machine,
                                     const ExchangeOptions& options, const CostModel* fits);

/// Multiprocessors that DeepEP V2 would take.
/// Result: those with which its copies keep up with whichever link is the bottleneck, times 1.25, even, at least 4 (64
///         where nothing overlaps), at most `device_sms`.
/// Errors: Errc::invalid_argument where ranks or domains do not divide experts, as its assertions.
/// Source: get_theoretical_num_sms, deep_ep/buffers/elastic.py of deepseek-ai/DeepEP; sm_read 200 and sm_write 50 GB/s.
[[nodiscard]] std::int64_t deepep_v2_sms(std::int64_t experts, std::int64_t topk, std::int64_t ranks,
                                         std::int64_t domains, double network_gb_per_s,
                                         double scale_up_gb_per_s, std::int64_t device_sms, bool overlapped);
/// Queue pairs for so many multiprocessors: 16 for each and one between domains (129 at most), else 9 at most.
/// Source: get_theoretical_num_qps, the same file.
[[nodiscard]] std::int64_t deepep_v2_qps(std::int64_t sms, std::int64_t domains);

/// Chunks and buffers of DeepEP's normal mode, which has them for some numbers of ranks only.
struct DeepEpChunks {
  std::int64_t near = 0, near_buffer = 0, far = 0, far_buffer = 0;  ///< Tokens
};
/// Null where DeepEP has no configuration for so many ranks. Source: get_dispatch_config and get_combine_config,
/// deep_ep/buffers/legacy.py.
[[nodiscard]] const DeepEpChunks* deepep_chunks(std::int64_t ranks, bool combine);
/// NVLink and RDMA buffers of one rank. Source: Config::get_nvl_buffer_size_hint and get_rdma_buffer_size_hint,
/// csrc/config.hpp, with 8 bytes of source metadata.
[[nodiscard]] double deepep_normal_bytes(std::int64_t ranks, std::int64_t hidden, std::int64_t sms);

}  // namespace shunt::plan
