#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include <shunt/core/dtype.h>
#include <shunt/layout/partition.h>
#include <shunt/routing/npy.h>
#include <shunt/routing/routing.h>

namespace shunt::bench {

/// One point of the benchmark: everything that decides which bytes go where.
struct Point {
  std::string preset;            ///< Name of the model shape, or "custom"
  std::int32_t num_experts = 1;  ///< E
  std::int32_t top_k = 1;        ///< K
  std::int64_t hidden = 1;       ///< H
  std::int64_t tokens = 1;       ///< T, per group
  std::int32_t ranks = 1;        ///< R
  std::int32_t dp_size = 1;
  DType in_dtype = DType::bf16;
  DType out_dtype = DType::bf16;
  RoutingSpec routing;
  std::string routing_label;  ///< routing_name(routing), or "input:DIR"
  std::uint64_t seed = 1;
};

/// Elements that share a scale where tokens are fp8.
inline constexpr std::int64_t kScaleBlock = 128;

/// Writes the token `token` of group `group` as values in [-1, 1), multiples of 2^-15: a pure function of the
/// arguments.
void fill_token(std::uint64_t seed, std::int32_t group, std::int64_t token, std::int64_t hidden, float* out);

/// Factor of an expert in the touch phase: 0.5, 1 or 2, exact in every dtype.
[[nodiscard]] constexpr float expert_factor(std::int32_t expert) noexcept {
  return expert % 3 == 0 ? 0.5F : expert % 3 == 1 ? 1.0F : 2.0F;
}

/// Tokens, expert choices and weights of every group, made before the ranks start so that all of them read
/// one copy.
/// Threads: const members may be called from every rank at once.
class Workload {
 public:
  /// `dump`, where not null, is what --input names; group g takes its tokens g T, g T + 1, … modulo their
  /// number.
  /// Errors: Errc::invalid_argument where dump and point disagree; those of Router.
  Workload(const Point& point, const ModelDump* dump);

  [[nodiscard]] const Point& point() const noexcept { return point_; }
  [[nodiscard]] std::int32_t num_groups() const noexcept { return point_.ranks / point_.dp_size; }
  [[nodiscard]] std::int32_t group_of(std::int32_t rank) const noexcept { return rank / point_.dp_size; }
  [[nodiscard]] const ExpertPartition& partition() const noexcept { return partition_; }
  [[nodiscard]] const Routing& routing(std::int32_t group) const {
    return routing_[static_cast<std::size_t>(group)];
  }
  /// Tokens of its group that `rank` sends.
  [[nodiscard]] TokenShare share(std::int32_t rank) const;

  [[nodiscard]] std::int64_t row_bytes() const noexcept {
    return point_.hidden * dtype_bytes(point_.in_dtype);
  }
  [[nodiscard]] std::int64_t num_scales() const noexcept;  ///< Per row; 0 unless tokens are fp8
  [[nodiscard]] std::int64_t scale_bytes() const noexcept { return num_scales() * 4; }  ///< Per row
  [[nodiscard]] std::int64_t out_row_bytes() const noexcept {
    return point_.hidden * dtype_bytes(point_.out_dtype);
  }
  [[nodiscard]] const std::byte* token(std::int32_t group, std::int64_t t) const noexcept;
  [[nodiscard]] const float* token_scales(std::int32_t group,
                                          std::int64_t t) const noexcept;  ///< Null without scales

  /// Rows that `source` sends to `owner` in dispatch (its share, one per selection).
  [[nodiscard]] std::int64_t sent_rows(std::int32_t source, std::int32_t owner) const;
  /// Rows of owner that `rank` needs back: those of its whole group.
  [[nodiscard]] std::int64_t returned_rows(std::int32_t owner, std::int32_t rank) const;
  /// Rows that arrive at `owner` in dispatch.
  [[nodiscard]] std::int64_t arriving_rows(std::int32_t owner) const;
  [[nodiscard]] std::int64_t max_arriving_rows() const;  ///< Over the owners
  [[nodiscard]] std::int64_t selections() const;         ///< Of all groups, -1 not counted

  /// Payload of all ranks: selections x (row + scales) in dispatch; selections x dp_size x output row in
  /// combine.
  [[nodiscard]] std::int64_t dispatch_bytes() const { return selections() * (row_bytes() + scale_bytes()); }
  [[nodiscard]] std::int64_t combine_bytes() const { return selections() * point_.dp_size * out_row_bytes(); }
  /// Every received row read, an output row written.
  [[nodiscard]] std::int64_t touch_bytes() const {
    return selections() * (row_bytes() + scale_bytes() + out_row_bytes());
  }

 private:
  Point point_;
  ExpertPartition partition_;
  std::vector<Routing> routing_;    ///< [G]
  std::vector<std::byte> tokens_;   ///< [G, T, H]
  std::vector<float> scales_;       ///< [G, T, ceil(H / block)]
  std::vector<std::int64_t> sent_;  ///< [R, R]
};

}  // namespace shunt::bench
