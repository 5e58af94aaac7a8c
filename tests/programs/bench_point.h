#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include <shunt/alltoall/config.h>

#include "programs/program.h"

namespace shunt::programs {

/// A point of the benchmark.
struct Point {
  std::int64_t tokens = 1;  ///< M
  std::int32_t experts = 1;
  std::int32_t top_k = 1;
  std::int64_t hidden = 1;
  bool fp8 = false;  ///< fp8 tokens with a float per block, else bf16

  [[nodiscard]] std::string name() const;
};

/// Those of the original.
[[nodiscard]] std::vector<Point> all_points();

[[nodiscard]] AllToAllConfig config_of(const Point& point, const Options& options);

struct PointBytes {
  double dispatch = 0;  ///< Of rows and scales that leave a rank in a step, the mean over the ranks
  double combine = 0;   ///< Of expert results that reach a rank likewise
};
[[nodiscard]] PointBytes bytes_of(const Point& point, const Options& options, std::int32_t ranks);

/// What a rank brings to every step of a point.
struct StepInput {
  std::int64_t count = 0;         ///< Tokens T: from 1 to M as in the original, or M
  std::vector<std::byte> tokens;  ///< [T, H], numbers of at most 1
  std::vector<float> scales;      ///< [T, blocks]; empty without
  std::vector<std::int32_t> ids;  ///< [T, K]
  std::vector<float> weights;     ///< [T, K]
};
[[nodiscard]] StepInput make_input(const Point& point, const Options& options, std::int32_t rank);

}  // namespace shunt::programs
