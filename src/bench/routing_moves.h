#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include <shunt/bench/routing_bench.h>

#include "team.h"
#include "torch_plugin.h"

namespace shunt::bench {

/// Memory that begins at a line of the cache, from 4 MiB on in huge pages where the system has them, touched once.
class Lines {
 public:
  /// Errors: Errc::out_of_memory.
  explicit Lines(std::int64_t bytes);
  [[nodiscard]] std::byte* data() const noexcept { return data_.get(); }
  [[nodiscard]] std::int64_t size() const noexcept { return size_; }

 private:
  struct Release {
    std::align_val_t alignment;
    void operator()(std::byte* data) const noexcept { ::operator delete(data, alignment); }
  };
  std::int64_t size_;
  std::unique_ptr<std::byte, Release> data_;
};

/// Milliseconds of the two halves; what has no halves is all in the first.
struct RoutingTook {
  double pack_ms = 0, combine_ms = 0;
};

/// One implementation of a work.
struct RoutingRunner {
  std::function<RoutingTook()> run;
  std::function<std::string()> check;  ///< Compares what the last run wrote. Empty where all is right
  std::string isa, written;            ///< As in RoutingRow
};

/// Kernel table of scalar or simd.
[[nodiscard]] const PackKernels& impl_kernels(const std::string& impl);

/// Pack, identity experts and combine of one point, or one half: rows of an expert lie together in token order, without gaps.
class RoutingMoves {
 public:
  /// `gate` is what the tokens chose; a capacity of 0 keeps all. All are used until the end.
  /// Errors: Errc::out_of_memory.
  RoutingMoves(const RoutingPoint& point, const GateOutput<float>& gate, const CapacityPlan& plan,
               std::int64_t capacity, Team& team);

  /// scalar, simd or torch. The runner uses this object.
  /// Errors: Errc::unavailable where there is no plugin for libtorch, Errc::internal with what libtorch said.
  [[nodiscard]] RoutingRunner runner(const std::string& impl);
  [[nodiscard]] RoutingTook run(const PackKernels& kernels);
  /// Milliseconds of copying as many bytes as run reads and writes by the strict formula.
  /// `k` is K as asked.
  [[nodiscard]] double copy(std::int64_t k);
  /// Overwrites what run writes.
  void spoil();
  /// Compares what run wrote with the plan and the tokens. Empty where all is right. `roundings` of the dtype are allowed in
  /// an element of a sum.
  [[nodiscard]] std::string check(double roundings = 1) const;

  /// Bytes all buffers take.
  [[nodiscard]] static std::int64_t memory_bytes(const RoutingPoint& point);

 private:
  using Clock = std::chrono::steady_clock;

  void place();
  template <bool Streaming>
  void pack(const PackKernels& kernels, std::int64_t from_token, std::int64_t to_token);
  template <bool Streaming>
  void combine(const PackKernels& kernels, std::vector<const void*>& rows, std::int64_t from_token,
               std::int64_t to_token);
  [[nodiscard]] RoutingTook run_torch();
  /// Of a run that began and changed halves then, and ends now.
  [[nodiscard]] RoutingTook halves(Clock::time_point start, Clock::time_point packed) const;
  void read_torch_positions();
  [[nodiscard]] std::string check_rows(std::int64_t token) const;
  [[nodiscard]] std::string check_sum(std::int64_t token, double roundings) const;

  const RoutingPoint& point_;
  const GateOutput<float>& gate_;
  const CapacityPlan& plan_;
  Team& team_;
  std::int64_t capacity_, k_, row_bytes_;
  bool packs_, sums_;           ///< The halves that run does
  bool streaming_;              ///< Rows do not fit the caches: rows and sums are written past them
  std::vector<float> weights_;  ///< [T, K] of the combine
  Lines tokens_, rows_, out_;
  std::vector<std::int64_t> next_;
  std::vector<std::int32_t> positions_;           ///< [T, K]
  std::vector<std::vector<const void*>> summed_;  ///< Of each thread [2 K]
  std::unique_ptr<TorchMovesWork> torch_;
};

/// Top-k and softmax over the chosen of logits in the point's dtype.
class TopKWork {
 public:
  TopKWork(const RoutingPoint& point, Team& team);

  /// As RoutingMoves::runner.
  [[nodiscard]] RoutingRunner runner(const std::string& impl);
  void spoil();
  /// What the scalar kernels choose.
  [[nodiscard]] GateOutput<float> output();

 private:
  [[nodiscard]] RoutingTook run(const PackKernels& kernels);
  /// By a stable sort of every token, in double. any_tie: of equal logits any may have been chosen.
  [[nodiscard]] std::string check(bool any_tie) const;

  const RoutingPoint& point_;
  Team& team_;
  Lines logits_;
  std::vector<std::int32_t> ids_;
  std::vector<std::int64_t> wide_ids_;  ///< Of libtorch
  std::vector<float> weights_;
  std::unique_ptr<TorchWork> torch_;
};

}  // namespace shunt::bench
