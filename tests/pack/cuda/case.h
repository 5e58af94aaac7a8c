#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <shunt/core/random.h>
#include <shunt/pack/cuda.h>

#include "pack/pack_fixture.h"

namespace shunt::test {

/// What a case of the sweep draws: everything that a caller may choose.
struct CudaCase {
  std::int64_t tokens = 0;
  std::int32_t top_k = 1;
  std::int32_t experts = 1;
  bool wide_ids = false;
  bool some_invalid = false;
  std::int64_t live = -1;  ///< What the device says; -1: nothing
  std::int64_t alignment = 1;
  std::int64_t rows_per_expert = 0;
  std::int64_t max_rows = 0;
  bool mark_rows = true;  ///< Ask for Plan::selections
  std::int64_t hidden = 1;
  DType token_dtype = DType::bf16;
  DType payload = DType::bf16;
  ScaleType scale = ScaleType::none;
  std::int64_t block = 128;
  cuda::ScaleLayout layout = cuda::ScaleLayout::row_major;
  std::int64_t matrix_rows = 0;
  DType result_dtype = DType::bf16;
  DType out_dtype = DType::bf16;
  bool accumulate = false;
  std::int64_t extra_stride = 0;  ///< Elements between rows
  std::size_t offset = 0;         ///< Bytes from a multiple of 64, of every row buffer
  bool any_bits = false;
  std::int32_t max_blocks = 0;
};

[[nodiscard]] CudaCase draw_case(Random& random);
[[nodiscard]] std::string describe(const CudaCase& c);

/// The memory of one case on one rank, what the kernels must leave there, and the calls. Expected values come from the CPU
/// kernels (the scalar table) and a plain loop over the ids.
class CudaRun {
 public:
  CudaRun(const CudaCase& c, Random& random);

  /// Every call of the case, in order, through `device`: make_plan(input, plan, workspace, limit), gather, scatter and
  /// combine(arguments, limit).
  template <class Device>
  void queue(Device& device) {
    const cuda::LaunchLimit limit{case_.max_blocks};
    device.make_plan(plan_input(), plan(), workspace_.data(), limit);
    device.gather(gather(), limit);
    if (case_.mark_rows) device.scatter(scatter(), limit);
    device.combine(combine(), limit);
  }
  /// The memory that the calls read and write, for a device that needs copies of it.
  struct Region {
    void* data;
    std::size_t bytes;
  };
  [[nodiscard]] std::vector<Region> regions();
  /// What differs from what is expected; empty where nothing does.
  [[nodiscard]] std::string difference() const;

 private:
  [[nodiscard]] cuda::PlanInput plan_input();
  [[nodiscard]] cuda::Plan plan();
  [[nodiscard]] cuda::Gather gather();
  [[nodiscard]] cuda::Scatter scatter();
  [[nodiscard]] cuda::Combine combine();
  [[nodiscard]] cuda::Scales scales(GuardedBuffer& at) const;
  [[nodiscard]] cuda::Scales dense_scales(GuardedBuffer& at) const;
  [[nodiscard]] std::int64_t stride(DType dtype) const;
  [[nodiscard]] cuda::DeviceRows rows(GuardedBuffer& buffer, DType dtype) const;
  [[nodiscard]] const std::int32_t* live() const { return case_.live < 0 ? nullptr : &live_; }

  void expect_plan();
  void expect_rows();
  void expect_slots();
  void expect_sums();

  struct Memory {
    std::vector<std::int32_t> counts, starts, positions, selections;
    std::vector<cuda::PlanStatus> status;
    GuardedBuffer rows{0}, scales{0};        ///< [W, H] after gather
    GuardedBuffer slots{0}, slot_scales{0};  ///< [T * K, H] after scatter
    GuardedBuffer out{0};                    ///< [T, H] after combine
  };

  CudaCase case_;
  std::int64_t live_tokens_ = 0;
  std::int32_t live_ = 0;
  std::int64_t num_rows_ = 0;  ///< W: rows there is memory for
  std::vector<std::int64_t> ids_;
  std::vector<std::int32_t> narrow_ids_;
  GuardedBuffer workspace_{0}, tokens_{0}, results_{0}, weights_{0};
  GuardedBuffer token_scales_{0};
  Memory actual_, expected_;
};

}  // namespace shunt::test
