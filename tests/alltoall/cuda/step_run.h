#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include <alltoall/guarded_rows.h>
#include <alltoall/oracle.h>
#include <alltoall/sweep_case.h>
#include <shunt/alltoall/cuda.h>

/// One rank's part in one step of a sweep's case, on GPUs: its memory, and what the library must leave there.
namespace gpu {

/// The cases of the sweep, without what AllToAll refuses on GPUs.
[[nodiscard]] sweep::SweepCase make_gpu_case(std::uint64_t seed);

/// What dispatch_recv has left, in memory of the host.
struct ReceivedOnHost {
  std::vector<const std::byte*> rows;    ///< [W]
  std::vector<const std::byte*> scales;  ///< [W] where there are scales
  std::span<const std::int32_t> starts, counts, counts_by_group;
  std::int32_t num_rows = 0;
};
/// Of memory that the host reaches.
[[nodiscard]] ReceivedOnHost on_host(const shunt::AllToAllConfig& config, std::int32_t num_ranks,
                                     std::int32_t rank, const shunt::cuda::Received& received);

class StepRun {
 public:
  /// `reference` is that of the step, for all ranks alike.
  StepRun(const sweep::ObjectPlan& object, const sweep::StepPlan& step, oracle::Reference& reference,
          std::int32_t rank);

  [[nodiscard]] shunt::cuda::TokenInput tokens();
  /// The same in token_buffer(), where the step says so; write_tokens() then brings them there.
  [[nodiscard]] shunt::cuda::TokenInput tokens_in(const shunt::cuda::DeviceRows& buffer);
  void write_tokens(const shunt::cuda::TokenInput& to);
  /// From now on ids() are these [T, K], whatever the reference says.
  void bring(const std::vector<std::int64_t>& ids) { fill_ids(ids); }
  [[nodiscard]] shunt::cuda::ExpertIds ids();
  /// Rows [W of the reference, H], or expert_output() where the step says so.
  [[nodiscard]] shunt::cuda::DeviceRows results(const shunt::cuda::DeviceRows& expert_output);
  [[nodiscard]] shunt::cuda::Weights weights();
  [[nodiscard]] shunt::cuda::DeviceRows out();
  [[nodiscard]] bool accumulate() const { return step_->accumulate; }
  [[nodiscard]] bool is_void() const { return step_->outcome == sweep::Outcome::overflow; }

  /// Throws std::runtime_error where a row, a scale or a count is not what it must be.
  void check_received(const ReceivedOnHost& received) const;
  /// The experts: writes results, at addresses of the host, from what was received.
  void run_experts(const ReceivedOnHost& received, const shunt::cuda::DeviceRows& results) const;
  /// After combine_recv. Throws as check_received.
  void check_out();
  /// Overwrites everything that the library may no longer read after dispatch_send, and after combine_send.
  void scribble_tokens();
  void scribble_results() { results_.scribble(); }

  struct Region {
    void* data;
    std::size_t bytes;
  };
  /// All memory that the library reads and writes, for a device that needs copies of it.
  [[nodiscard]] std::vector<Region> regions();

 private:
  template <class... Parts>
  void require(bool ok, const Parts&... parts) const;
  [[nodiscard]] const oracle::GroupInput& input() const;
  void fill_ids(const std::vector<std::int64_t>& ids);

  const sweep::StepPlan* step_;
  const shunt::AllToAllConfig* config_;
  oracle::Reference* reference_;
  std::int32_t rank_, group_;
  std::int64_t given_;
  oracle::ExpectedRows expected_;
  GuardedRows tokens_, results_, out_;
  oracle::Bytes scales_;
  std::vector<std::int64_t> wide_ids_;
  std::vector<std::int32_t> narrow_ids_;
  std::vector<float> weights_;
  oracle::Bytes old_;
  std::int32_t live_;
};

}  // namespace gpu
