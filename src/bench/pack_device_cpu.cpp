#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstring>
#include <memory>
#include <new>

#include <fmt/format.h>

#include <shunt/core/error.h>
#include <shunt/core/host.h>
#include <shunt/pack/kernels.h>

#include "pack_device.h"

namespace shunt::bench {
namespace {

constexpr std::align_val_t kAlignment{256};

std::int64_t live(std::int64_t most, const std::int32_t* now) {
  return now == nullptr ? most : std::clamp<std::int64_t>(*now, 0, most);
}

std::byte* row_of(const cuda::DeviceRows& rows, std::int64_t row) {
  return static_cast<std::byte*>(rows.data) + row * rows.stride_bytes;
}

/// What the scales of a row take where they lie dense, as they do here.
std::int64_t scale_row_bytes(const cuda::Scales& scales, std::int64_t hidden) {
  return (hidden + scales.block - 1) / scales.block * scale_bytes(scales.type);
}

/// One core with the fastest kernels it has. The calls are those of <shunt/pack/cuda.h> as far as the benchmark needs them:
/// int32 ids, dense scales.
class CpuPackDevice final : public PackDevice {
 public:
  [[nodiscard]] std::string description() const override {
    return fmt::format("one core of {}, kernels {}", read_host_info().cpu_model, isa_name(kernels_.isa));
  }
  [[nodiscard]] std::int64_t free_bytes() const override { return read_host_info().memory_available_bytes; }

  [[nodiscard]] void* allocate(std::int64_t bytes) override {
    const auto size = static_cast<std::size_t>(std::max<std::int64_t>(bytes, 1));
    auto* data = static_cast<std::byte*>(::operator new(size, kAlignment, std::nothrow));
    if (data == nullptr)
      throw Error(Errc::out_of_memory, fmt::format("{} bytes could not be allocated", bytes));
    std::memset(data, 0, size);
    memory_.emplace_back(data);
    return data;
  }
  void write(void* to, const void* from, std::int64_t bytes) override { kernels_.copy(to, from, bytes); }
  void read(void* to, const void* from, std::int64_t bytes) override { kernels_.copy(to, from, bytes); }

  void make_plan(const cuda::PlanInput& input, const cuda::Plan& plan, void* /*workspace*/) override {
    const auto* ids = static_cast<const std::int32_t*>(input.selections.ids);
    const std::int64_t selections =
        live(input.selections.num_tokens, input.selections.live_tokens) * input.selections.top_k;
    std::fill_n(plan.counts, input.num_experts, 0);
    std::fill_n(plan.selections, input.max_rows, -1);
    for (std::int64_t i = 0; i < selections; ++i)
      if (ids[i] >= 0) ++plan.counts[ids[i]];
    std::int32_t next = 0;
    for (std::int32_t e = 0; e < input.num_experts; ++e) {
      plan.starts[e] = next;
      next += input.rows_per_expert > 0 ? static_cast<std::int32_t>(input.rows_per_expert) : plan.counts[e];
    }
    plan.starts[input.num_experts] = next;
    next_.assign(plan.starts, plan.starts + input.num_experts);
    for (std::int64_t i = 0; i < selections; ++i) {
      plan.positions[i] = ids[i] < 0 ? -1 : next_[static_cast<std::size_t>(ids[i])]++;
      if (ids[i] >= 0) plan.selections[plan.positions[i]] = static_cast<std::int32_t>(i);
    }
    *plan.status = {.first_invalid = -1, .dropped = 0, .rows_needed = next, .num_rows = next};
  }

  void gather(const cuda::Gather& g) override {
    const bool quantises = g.from.dtype != g.to.dtype;
    const Quantisation how{g.to.dtype, g.scales.type, g.scales.block};
    const std::int64_t row_bytes = g.hidden * dtype_bytes(g.to.dtype);
    const std::int64_t scales = scale_row_bytes(g.scales, g.hidden);
    for (std::int64_t t = 0; t < live(g.num_tokens, g.live_tokens); ++t) {
      const std::byte* from = row_of(g.from, t);
      const std::byte* from_scales = g.from_scales.type == ScaleType::none
                                         ? nullptr
                                         : static_cast<const std::byte*>(g.from_scales.data) +
                                               t * scale_row_bytes(g.from_scales, g.hidden);
      for (std::int32_t k = 0; k < g.top_k; ++k) {
        const std::int64_t row = g.positions[t * g.top_k + k];
        if (row < 0) continue;
        std::byte* to = row_of(g.to, row);
        auto* to_scales = static_cast<std::byte*>(g.scales.data) + row * scales;
        if (quantises && from_scales == nullptr) {  // the other rows of the token are copies of the first
          kernels_.quantise(from, g.from.dtype, g.hidden, how, {to, to_scales});
          from = to;
          from_scales = to_scales;
          continue;
        }
        kernels_.copy(to, from, row_bytes);
        if (from_scales != nullptr) kernels_.copy(to_scales, from_scales, scales);
      }
    }
  }

  void scatter(const cuda::Scatter& s) override {
    const std::int64_t row_bytes = s.hidden * dtype_bytes(s.from.dtype);
    const std::int64_t scales = scale_row_bytes(s.from_scales, s.hidden);
    for (std::int64_t i = 0; i < live(s.num_rows, s.live_rows); ++i) {
      const std::int64_t to = s.destinations[i];
      if (to < 0) continue;
      kernels_.copy(row_of(s.to, to), row_of(s.from, i), row_bytes);
      if (scales > 0)
        kernels_.copy(static_cast<std::byte*>(s.to_scales.data) + to * scales,
                      static_cast<const std::byte*>(s.from_scales.data) + i * scales, scales);
    }
  }

  void combine(const cuda::Combine& c) override {
    rows_.resize(static_cast<std::size_t>(c.top_k));
    for (std::int64_t t = 0; t < c.num_tokens; ++t) {
      for (std::int32_t k = 0; k < c.top_k; ++k) {
        const std::int64_t row = c.positions[t * c.top_k + k];
        rows_[static_cast<std::size_t>(k)] = row < 0 ? nullptr : row_of(c.rows, row);
      }
      kernels_.weighted_sum({.rows = rows_.data(),
                             .weights = c.weights + t * c.top_k,
                             .num_rows = c.top_k,
                             .hidden = c.hidden,
                             .row_dtype = c.rows.dtype,
                             .out_dtype = c.out.dtype,
                             .out = row_of(c.out, t),
                             .accumulate = c.accumulate});
    }
  }

  void copy(void* to, const void* from, std::int64_t bytes) override {
    kernels_.copy_streaming(to, from, bytes);
  }
  void fill(void* to, int value, std::int64_t bytes) override {
    std::memset(to, value, static_cast<std::size_t>(bytes));
  }
  void touch(const GpuTouch& touch) override { touch_on_cpu(touch); }

  [[nodiscard]] std::vector<double> time_us(const std::function<void()>& work, std::int64_t warmup,
                                            std::int64_t iterations, bool cold) override {
    using Clock = std::chrono::steady_clock;
    std::vector<double> samples;
    for (std::int64_t i = -warmup; i < iterations; ++i) {
      if (cold) flush();
      const auto start = Clock::now();
      work();
      store_fence();
      const std::chrono::duration<double, std::micro> took = Clock::now() - start;
      if (i >= 0) samples.push_back(took.count());
    }
    return samples;
  }

 private:
  struct Release {
    void operator()(std::byte* data) const { ::operator delete(data, kAlignment); }
  };

  /// Writes more memory than the caches hold.
  void flush() {
    if (other_.empty())
      other_.resize(static_cast<std::size_t>(
          std::clamp<std::int64_t>(2 * read_host_info().l3_bytes, 64 << 20, 512 << 20)));
    ++filler_;
    std::memset(other_.data(), filler_, other_.size());
  }

  const PackKernels& kernels_ = pack_kernels();
  std::vector<std::unique_ptr<std::byte, Release>> memory_;
  std::vector<std::int32_t> next_;
  std::vector<const void*> rows_;
  std::vector<unsigned char> other_;
  unsigned char filler_ = 0;
};

}  // namespace

std::unique_ptr<PackDevice> make_cpu_pack_device() {
  return std::make_unique<CpuPackDevice>();
}

}  // namespace shunt::bench
