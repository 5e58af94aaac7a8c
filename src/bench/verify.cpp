#include <shunt/bench/verify.h>

#include <cmath>
#include <cstring>
#include <vector>

#include <fmt/format.h>

namespace shunt::bench {
namespace {

/// Largest relative error of one rounding to nearest.
double unit_roundoff(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return std::ldexp(1.0, -24);
    case DType::f16:
      return std::ldexp(1.0, -11);
    default:
      return std::ldexp(1.0, -8);
  }
}

/// Half of the distance between neighbouring subnormals.
double smallest_step(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return std::ldexp(1.0, -150);
    case DType::f16:
      return std::ldexp(1.0, -25);
    default:
      return std::ldexp(1.0, -134);
  }
}

}  // namespace

std::uint64_t hash_bytes(const void* data, std::int64_t bytes, std::uint64_t seed) noexcept {
  const auto* at = static_cast<const unsigned char*>(data);
  std::uint64_t hash = seed ^ 0x9e3779b97f4a7c15ULL ^ static_cast<std::uint64_t>(bytes);
  const auto mix = [&hash](std::uint64_t word) {
    hash = (hash ^ word) * 0xd6e8feb86659fd93ULL;
    hash ^= hash >> 32;
  };
  std::int64_t done = 0;
  for (; done + 8 <= bytes; done += 8) {
    std::uint64_t word = 0;
    std::memcpy(&word, at + done, 8);
    mix(word);
  }
  std::uint64_t tail = 0;
  if (done < bytes) std::memcpy(&tail, at + done, static_cast<std::size_t>(bytes - done));
  mix(tail);
  mix(hash >> 29);
  return hash;
}

std::string Verifier::check_rows(const ArrivedRows& arrived) const {
  const ExpertPartition& partition = workload_.partition();
  const std::int32_t first = partition.first(rank_);
  const auto row_bytes = static_cast<std::size_t>(workload_.row_bytes());
  const auto scale_bytes = static_cast<std::size_t>(workload_.scale_bytes());
  struct Origin {
    std::int32_t group;
    std::int64_t token;
  };
  std::vector<std::vector<Origin>> expected(static_cast<std::size_t>(partition.count(rank_)));
  for (std::int32_t group = 0; group < workload_.num_groups(); ++group) {
    const Routing& routing = workload_.routing(group);
    for (std::int64_t t = 0; t < routing.num_tokens; ++t)
      for (std::int32_t k = 0; k < routing.top_k; ++k) {
        const std::int32_t expert = routing.ids[static_cast<std::size_t>(t * routing.top_k + k)] - first;
        if (expert >= 0 && expert < partition.count(rank_))
          expected[static_cast<std::size_t>(expert)].push_back({group, t});
      }
  }
  std::size_t row = 0;
  for (std::size_t e = 0; e < expected.size(); ++e)
    for (const Origin& origin : expected[e]) {
      if (row >= arrived.rows.size())
        return fmt::format("rank {} got {} rows; expected more, up to expert {}", rank_, row,
                           first + static_cast<int>(e));
      const auto name = [&] {
        return fmt::format("rank {}, row {} (expert {}, group {}, token {})", rank_, row,
                           first + static_cast<int>(e), origin.group, origin.token);
      };
      if (std::memcmp(arrived.rows[row], workload_.token(origin.group, origin.token), row_bytes) != 0)
        return name() + " differs from its token";
      if (scale_bytes > 0 &&
          (row >= arrived.scales.size() ||
           std::memcmp(arrived.scales[row], workload_.token_scales(origin.group, origin.token),
                       scale_bytes) != 0))
        return name() + " has other scales than its token";
      ++row;
    }
  if (row != arrived.rows.size())
    return fmt::format("rank {} got {} rows; expected {}", rank_, arrived.rows.size(), row);
  return {};
}

std::string Verifier::check_combined(const std::byte* combined, std::uint64_t* hash, bool presum) {
  const std::int64_t tokens = workload_.routing(workload_.group_of(rank_)).num_tokens;
  *hash = hash_bytes(combined, tokens * workload_.out_row_bytes());
  std::set<std::uint64_t>& known_good = known_good_[presum ? 1 : 0];
  if (known_good.contains(*hash)) return {};
  std::string wrong = check_sums(combined, presum);
  if (wrong.empty()) known_good.insert(*hash);
  return wrong;
}

std::string Verifier::check_sums(const std::byte* combined, bool presum) const {
  const Point& point = workload_.point();
  const std::int32_t group = workload_.group_of(rank_);
  const Routing& routing = workload_.routing(group);
  const double roundoff = unit_roundoff(point.out_dtype);
  const double step = smallest_step(point.out_dtype);
  // Expert rows and the result are rounded once each, the fp32 sum once per k. A partial sum is one more row, with
  // a sum in front of it and a place in the one behind it.
  const double roundings =
      (presum ? 3.1 : 2.1) * roundoff + ((presum ? 2 : 1) * point.top_k + 2) * std::ldexp(1.0, -24);
  const double partial_sums = presum ? point.top_k : 0;
  std::vector<double> token(static_cast<std::size_t>(point.hidden));
  for (std::int64_t t = 0; t < routing.num_tokens; ++t) {
    const std::byte* from = workload_.token(group, t);
    const float* scales = workload_.token_scales(group, t);
    for (std::int64_t h = 0; h < point.hidden; ++h) {
      const double scale = scales == nullptr ? 1.0 : static_cast<double>(scales[h / kScaleBlock]);
      token[static_cast<std::size_t>(h)] = static_cast<double>(load_element(point.in_dtype, from, h)) * scale;
    }
    // y = x * factor for every expert, so the sum over k is x times the sum of weights and factors.
    double sum = 0;
    double size = 0;
    for (std::int32_t k = 0; k < point.top_k; ++k) {
      const auto at = static_cast<std::size_t>(t * point.top_k + k);
      if (routing.ids[at] < 0) continue;
      const double share =
          static_cast<double>(routing.weights[at]) * static_cast<double>(expert_factor(routing.ids[at]));
      sum += share;
      size += std::abs(share);
    }
    const std::byte* row = combined + t * workload_.out_row_bytes();
    for (std::int64_t h = 0; h < point.hidden; ++h) {
      const double x = token[static_cast<std::size_t>(h)];
      const double expected = x * sum;
      const double got = static_cast<double>(load_element(point.out_dtype, row, h));
      const double allowed = std::abs(x) * size * roundings + step * (2.0 + size + partial_sums);
      if (!(std::abs(got - expected) <= allowed))
        return fmt::format("rank {}, token {}, element {}: combined {} where {} +- {} is right", rank_, t, h,
                           got, expected, allowed);
    }
  }
  return {};
}

}  // namespace shunt::bench
