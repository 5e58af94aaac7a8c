#include "programs/bench_point.h"

#include <algorithm>

#include <fmt/format.h>

#include <shunt/core/random.h>

namespace shunt::programs {
namespace {

constexpr std::int64_t kBlock = 128;

/// Tokens that a group brings: from 1 to M as in the original, of which the bytes are then counted.
std::int64_t tokens_of(const Point& point, const Options& options, std::int32_t group) {
  if (options.full_tokens) return point.tokens;
  Random random(1, static_cast<std::uint64_t>(group));
  return 1 + static_cast<std::int64_t>(random.below(static_cast<std::uint64_t>(point.tokens)));
}

std::int64_t scale_blocks(const AllToAllConfig& config) {
  return config.scale == ScaleType::none ? 0 : (config.hidden - 1) / config.scale_block + 1;
}

void pick_experts(const AllToAllConfig& config, Random& random, std::vector<std::int32_t>& ids) {
  const auto first = static_cast<std::ptrdiff_t>(ids.size());
  while (ids.size() < static_cast<std::size_t>(first + config.top_k)) {
    const auto expert =
        static_cast<std::int32_t>(random.below(static_cast<std::uint64_t>(config.num_experts)));
    if (std::find(ids.begin() + first, ids.end(), expert) == ids.end()) ids.push_back(expert);
  }
}

}  // namespace

std::string Point::name() const {
  return fmt::format("E{}-K{}-H{}-M{}-{}", experts, top_k, hidden, tokens, fp8 ? "fp8" : "bf16");
}

std::vector<Point> all_points() {
  std::vector<Point> points;
  for (const bool fp8 : {true, false}) {
    points.push_back({.tokens = 1, .experts = 8, .top_k = 4, .hidden = 128, .fp8 = fp8});
    points.push_back({.tokens = 4, .experts = 8, .top_k = 6, .hidden = 2048, .fp8 = fp8});
    for (const std::int32_t experts : {8, 16, 64, 256}) {
      for (const std::int64_t tokens : {1, 4, 16, 64, 128})
        points.push_back({.tokens = tokens, .experts = experts, .top_k = 8, .hidden = 7168, .fp8 = fp8});
    }
  }
  return points;
}

AllToAllConfig config_of(const Point& point, const Options& options) {
  AllToAllConfig config;
  config.max_tokens = point.tokens;
  config.num_experts = point.experts;
  config.top_k = point.top_k;
  config.hidden = point.hidden;
  config.dp_size = static_cast<std::int32_t>(options.dp_size);
  config.scale_block = std::min(kBlock, point.hidden);
  if (point.fp8) {
    config.token_dtype = config.payload = DType::f8e4m3;
    config.scale = ScaleType::f32;
  }
  return config;
}

PointBytes bytes_of(const Point& point, const Options& options, std::int32_t ranks) {
  const AllToAllConfig config = config_of(point, options);
  const std::int64_t row =
      config.hidden * dtype_bytes(config.payload) + scale_blocks(config) * scale_bytes(config.scale);
  PointBytes bytes;
  for (std::int32_t group = 0; group < ranks / config.dp_size; ++group) {
    const auto choices = static_cast<double>(tokens_of(point, options, group) * config.top_k);
    bytes.dispatch += choices * static_cast<double>(row) / ranks;
    bytes.combine += choices *
                     static_cast<double>(config.hidden * dtype_bytes(config.expert_dtype) * config.dp_size) /
                     ranks;
  }
  return bytes;
}

StepInput make_input(const Point& point, const Options& options, std::int32_t rank) {
  const AllToAllConfig config = config_of(point, options);
  const std::int32_t group = rank / config.dp_size;
  StepInput input;
  input.count = tokens_of(point, options, group);
  Random random(2, static_cast<std::uint64_t>(group));
  input.tokens.resize(
      static_cast<std::size_t>(input.count * config.hidden * dtype_bytes(config.token_dtype)));
  // 1.0 or less in both formats, never NaN.
  for (std::byte& one : input.tokens) one = static_cast<std::byte>(random.below(0x38));
  input.scales.assign(static_cast<std::size_t>(input.count * scale_blocks(config)), 1.0F);
  for (std::int64_t token = 0; token < input.count; ++token) pick_experts(config, random, input.ids);
  input.weights.assign(static_cast<std::size_t>(input.count * config.top_k),
                       1.0F / static_cast<float>(config.top_k));
  return input;
}

}  // namespace shunt::programs
