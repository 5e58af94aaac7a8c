#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include <shunt/bench/routing_bench.h>

namespace shunt::bench {

/// Memory that begins at a line of the cache and is touched once.
class Lines {
 public:
  /// Errors: Errc::out_of_memory.
  explicit Lines(std::int64_t bytes);
  [[nodiscard]] std::byte* data() const noexcept { return data_.get(); }
  [[nodiscard]] std::int64_t size() const noexcept { return size_; }

 private:
  struct Release {
    void operator()(std::byte* data) const noexcept { ::operator delete (data, std::align_val_t{64}); }
  };
  std::int64_t size_;
  std::unique_ptr<std::byte, Release> data_;
};

/// Pack, identity experts and combine of one point: rows of an expert lie together in token order, without gaps.
class RoutingMoves {
 public:
  struct Took {
    double pack_ms = 0, combine_ms = 0;
  };

  /// `gate` is what the tokens chose; a capacity of 0 keeps all.
  /// Errors: Errc::out_of_memory.
  RoutingMoves(const RoutingPoint& point, const GateOutput<float>& gate, const CapacityPlan& plan,
               std::int64_t capacity);

  [[nodiscard]] Took run(const PackKernels& kernels);
  /// Milliseconds of copying (1 + K) T rows, which reads and writes as many bytes as run by the strict formula.
  [[nodiscard]] double copy();
  /// Overwrites what run writes.
  void spoil();
  /// Compares what run wrote with the plan and the tokens. Empty where all is right.
  [[nodiscard]] std::string check() const;

  /// Bytes all buffers take.
  [[nodiscard]] static std::int64_t memory_bytes(const RoutingPoint& point);

 private:
  void place();
  template <bool Streaming>
  void pack(const PackKernels& kernels);
  template <bool Streaming>
  void combine(const PackKernels& kernels);
  [[nodiscard]] std::string check_rows(std::int64_t token) const;
  [[nodiscard]] std::string check_sum(std::int64_t token) const;

  const RoutingPoint& point_;
  const GateOutput<float>& gate_;
  const CapacityPlan& plan_;
  std::int64_t capacity_, k_, row_bytes_;
  bool streaming_;              ///< Rows do not fit the caches: rows and sums are written past them
  std::vector<float> weights_;  ///< [T, K] of the combine
  Lines tokens_, rows_, out_, sum_;
  std::vector<std::int64_t> next_;
  std::vector<std::int32_t> positions_;  ///< [T, K]
  std::vector<const void*> summed_;
};

}  // namespace shunt::bench
