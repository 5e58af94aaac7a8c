#include <algorithm>
#include <cmath>

#include <fmt/format.h>

#include <shunt/cluster/volume.h>
#include <shunt/core/error.h>
#include <shunt/plan/exchange.h>

namespace shunt::plan {
namespace {

constexpr double kReadGbPerS = 200;  // Of one multiprocessor, from HBM
constexpr double kWriteGbPerS = 50;
constexpr double kSafety = 1.25;
constexpr std::int64_t kFewest = 4;
constexpr std::int64_t kAlone = 64;
constexpr std::int64_t kMostQps = 129;
constexpr std::int64_t kNotifyQp = 1;
constexpr std::int64_t kNvlPeers = 8;
constexpr std::int64_t kSlotTopk = 128;  // What config.hpp reserves for each token
constexpr std::int64_t kSlotScales = 128;
constexpr std::int64_t kSourceMeta = 8;

struct Chunks {
  std::int64_t ranks;
  DeepEpChunks dispatch, combine;
};
constexpr Chunks kChunks[] = {
    {2, {24, 256, 6, 128}, {10, 256, 6, 128}},   {4, {6, 256, 6, 128}, {9, 256, 6, 128}},
    {8, {6, 256, 6, 128}, {4, 256, 6, 128}},     {16, {36, 288, 20, 128}, {4, 288, 12, 128}},
    {24, {32, 288, 8, 128}, {1, 288, 8, 128}},   {32, {32, 288, 8, 128}, {1, 288, 8, 128}},
    {48, {32, 288, 8, 128}, {1, 288, 8, 128}},   {64, {32, 288, 8, 128}, {1, 288, 8, 128}},
    {96, {20, 480, 12, 128}, {1, 480, 8, 128}},  {128, {20, 560, 12, 128}, {1, 560, 8, 128}},
    {144, {32, 720, 12, 128}, {2, 720, 8, 128}}, {160, {28, 720, 12, 128}, {2, 720, 8, 128}},
};

double real(std::int64_t value) {
  return static_cast<double>(value);
}

double distinct(std::int64_t experts, std::int64_t topk, std::int64_t groups) {
  if (experts % groups != 0)
    throw Error(Errc::invalid_argument, fmt::format("{} places do not divide {} experts", groups, experts));
  RoutedShape shape;
  shape.ranks = static_cast<std::int32_t>(groups);
  shape.experts = experts;
  shape.topk = topk;
  return expected_destinations(shape).ranks;
}

}  // namespace

std::int64_t deepep_v2_sms(std::int64_t experts, std::int64_t topk, std::int64_t ranks, std::int64_t domains,
                           double network_gb_per_s, double scale_up_gb_per_s, std::int64_t device_sms,
                           bool overlapped) {
  // All traffic for one row that lands on a rank.
  const double rows = distinct(experts, topk, ranks);
  const double near_ranks = real(ranks / domains);
  double read = 1 / rows;
  double write = 0;
  double network = 0;
  double scale_up = 0;
  if (domains > 1) {
    const double far = distinct(experts, topk, domains);
    write += 1 / rows + far / rows / real(domains) + 1;
    read += far / rows;
    network = far / rows * (1 - 1 / real(domains));
    scale_up = 1 - 1 / near_ranks;
  } else {
    write += 1;
    scale_up = 1 - 1 / near_ranks;
  }
  const bool by_network = domains > 1 && network / network_gb_per_s > scale_up / scale_up_gb_per_s;
  const double traffic = by_network ? network : scale_up;
  const double rate = by_network ? network_gb_per_s : scale_up_gb_per_s;
  if (traffic <= 0) return device_sms;
  const double sms = rate / traffic * std::max(read / kReadGbPerS, write / kWriteGbPerS);
  std::int64_t count = std::max(kFewest, static_cast<std::int64_t>(std::ceil(sms * kSafety)));
  count += count % 2;
  if (!overlapped) count = std::max(count, kAlone);
  return std::min(count, device_sms);
}

std::int64_t deepep_v2_qps(std::int64_t sms, std::int64_t domains) {
  return domains > 1 ? std::min(sms * 16 + kNotifyQp, kMostQps) : std::min<std::int64_t>(sms, 8 + kNotifyQp);
}

const DeepEpChunks* deepep_chunks(std::int64_t ranks, bool combine) {
  for (const Chunks& chunks : kChunks)
    if (chunks.ranks == ranks) return combine ? &chunks.combine : &chunks.dispatch;
  return nullptr;
}

double deepep_normal_bytes(std::int64_t ranks, std::int64_t hidden, std::int64_t sms) {
  const std::int64_t channels = std::max<std::int64_t>(sms / 2, 1);
  const std::int64_t near = std::min(ranks, kNvlPeers);
  const std::int64_t far = std::max<std::int64_t>(ranks / kNvlPeers, 1);
  const std::int64_t slot = 2 * hidden + kSourceMeta + kSlotTopk * (8 + 4) + kSlotScales * 4;
  const auto aligned = [](std::int64_t bytes) { return (bytes + 127) / 128 * 128; };
  std::int64_t most = 0;
  for (const bool combine : {false, true}) {
    const DeepEpChunks* chunks = deepep_chunks(ranks, combine);
    if (chunks == nullptr) continue;
    std::int64_t bytes =
        aligned(channels * near * (2 * far + 3) * 4 + channels * near * chunks->near_buffer * slot);
    if (ranks > kNvlPeers)
      bytes += aligned(channels * far * (kNvlPeers * 2 + 2) * 2 * 4 +
                       2 * channels * far * chunks->far_buffer * slot);
    most = std::max(most, bytes);
  }
  return real(most);
}

}  // namespace shunt::plan
