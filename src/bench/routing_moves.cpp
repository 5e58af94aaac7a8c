#include "routing_moves.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>

#include <fmt/format.h>

#include <shunt/core/error.h>
#include <shunt/core/host.h>
#include <shunt/core/random.h>
#include <shunt/pack/prefetch.h>

namespace shunt::bench {
namespace {

using Clock = std::chrono::steady_clock;
/// Token rows that differ in every element; the others repeat them but for their first elements.
constexpr std::int64_t kDistinctRows = 61;
/// Tokens whose rows and sums are compared.
constexpr std::int64_t kCheckedTokens = 512;
/// Of the L3 that many cores share, one rarely has more.
constexpr std::int64_t kMostCached = std::int64_t{32} << 20;

std::size_t at(std::int64_t i) {
  return static_cast<std::size_t>(i);
}

double milliseconds(Clock::time_point from, Clock::time_point to) {
  return std::chrono::duration<double, std::milli>(to - from).count();
}

void fill_tokens(const RoutingPoint& point, std::byte* to) {
  const std::int64_t bytes = point.hidden * dtype_bytes(point.dtype);
  for (std::int64_t t = 0; t < point.tokens; ++t) {
    std::byte* row = to + t * bytes;
    if (t < kDistinctRows) {
      Random random(point.seed, static_cast<std::uint64_t>(t));
      for (std::int64_t h = 0; h < point.hidden; ++h)
        store_element(point.dtype, row, h, static_cast<float>(random.normal()));
    } else {
      std::memcpy(row, to + t % kDistinctRows * bytes, at(bytes));
    }
    // Seven bits fit the mantissa of every dtype.
    for (std::int64_t h = 0; h < std::min<std::int64_t>(point.hidden, 4); ++h)
      store_element(point.dtype, row, h, static_cast<float>(t >> (7 * h) & 127));
  }
}

}  // namespace

Lines::Lines(std::int64_t bytes)
    : size_(bytes),
      data_(static_cast<std::byte*>(
          ::operator new (at(std::max<std::int64_t>(bytes, 1)), std::align_val_t{64}, std::nothrow))) {
  if (data_ == nullptr)
    throw Error(Errc::out_of_memory, fmt::format("{} bytes could not be allocated", bytes));
  std::memset(data_.get(), 0, at(bytes));
}

std::int64_t RoutingMoves::memory_bytes(const RoutingPoint& point) {
  return (2 + point.top_k) * point.tokens * point.hidden * dtype_bytes(point.dtype);
}

RoutingMoves::RoutingMoves(const RoutingPoint& point, const GateOutput<float>& gate, const CapacityPlan& plan,
                           std::int64_t capacity)
    : point_(point),
      gate_(gate),
      plan_(plan),
      capacity_(capacity),
      k_(gate.top_k),
      row_bytes_(point.hidden * dtype_bytes(point.dtype)),
      streaming_(k_ * point.tokens * row_bytes_ > std::min(read_host_info().l3_bytes / 4, kMostCached)),
      weights_(point.weighted ? apply_drops(gate, plan, point.renormalise).weights
                              : std::vector<float>(gate.weights.size(), 1.0F)),
      tokens_(point.tokens * row_bytes_),
      rows_(k_ * point.tokens * row_bytes_),
      out_(point.tokens * row_bytes_),
      sum_(row_bytes_),
      next_(at(point.num_experts) + 1),
      positions_(at(point.tokens * k_)),
      summed_(at(k_)) {
  fill_tokens(point, tokens_.data());
}

/// The row of every selection: count, prefix, number; first come, first served.
void RoutingMoves::place() {
  std::fill(next_.begin(), next_.end(), 0);
  const std::int64_t selections = point_.tokens * k_;
  const std::int32_t* ids = gate_.ids.data();
  for (std::int64_t i = 0; i < selections; ++i)
    if (ids[i] >= 0) ++next_[at(ids[i])];
  const std::int64_t limit = capacity_ > 0 ? capacity_ : selections;
  std::vector<std::int64_t> ends(next_.size());
  std::int64_t start = 0;
  for (std::size_t e = 0; e < next_.size(); ++e) {
    const std::int64_t rows = std::min(next_[e], limit);
    next_[e] = start;
    ends[e] = start += rows;
  }
  for (std::int64_t i = 0; i < selections; ++i) {
    const std::int32_t e = ids[i];
    positions_[at(i)] = e >= 0 && next_[at(e)] < ends[at(e)] ? static_cast<std::int32_t>(next_[at(e)]++) : -1;
  }
}

template <bool Streaming>
void RoutingMoves::pack(const PackKernels& kernels) {
  const std::int32_t* position = positions_.data();
  for (std::int64_t t = 0; t < point_.tokens; ++t) {
    const std::byte* from = tokens_.data() + t * row_bytes_;
    for (std::int64_t k = 0; k < k_; ++k) {
      const std::int64_t row = *position++;
      if (row < 0) continue;
      if constexpr (Streaming)
        kernels.copy_streaming(rows_.data() + row * row_bytes_, from, row_bytes_);
      else
        kernels.copy(rows_.data() + row * row_bytes_, from, row_bytes_);
    }
  }
  if constexpr (Streaming) store_fence();
}

template <bool Streaming>
void RoutingMoves::combine(const PackKernels& kernels) {
  const std::int64_t selections = point_.tokens * k_;
  for (std::int64_t t = 0; t < point_.tokens; ++t) {
    for (std::int64_t k = 0; k < k_; ++k) {
      const std::int64_t row = positions_[at(t * k_ + k)];
      summed_[at(k)] = row < 0 ? nullptr : rows_.data() + row * row_bytes_;
      // Rows of the next token lie anywhere.
      const std::int64_t later = t * k_ + k_ + k;
      if (later < selections && positions_[at(later)] >= 0)
        prefetch_to_read(rows_.data() + positions_[at(later)] * row_bytes_);
    }
    std::byte* out = out_.data() + t * row_bytes_;
    kernels.weighted_sum({.rows = summed_.data(),
                          .weights = weights_.data() + t * k_,
                          .num_rows = k_,
                          .hidden = point_.hidden,
                          .row_dtype = point_.dtype,
                          .out_dtype = point_.dtype,
                          .out = Streaming ? sum_.data() : out});
    // A sum that is written line by line would first be read from memory; the one in the cache is written past it.
    if constexpr (Streaming) kernels.copy_streaming(out, sum_.data(), row_bytes_);
  }
  if constexpr (Streaming) store_fence();
}

RoutingMoves::Took RoutingMoves::run(const PackKernels& kernels) {
  const auto start = Clock::now();
  place();
  const bool streaming = streaming_ && kernels.isa != Isa::scalar;
  if (streaming)
    pack<true>(kernels);
  else
    pack<false>(kernels);
  const auto packed = Clock::now();
  if (streaming)
    combine<true>(kernels);
  else
    combine<false>(kernels);
  return {milliseconds(start, packed), milliseconds(packed, Clock::now())};
}

double RoutingMoves::copy() {
  const PackKernels& kernels = pack_kernels();
  const auto start = Clock::now();
  const std::int64_t bytes = tokens_.size();
  for (std::int64_t k = 0; k < k_; ++k)
    kernels.copy_streaming(rows_.data() + k * bytes, tokens_.data(), bytes);
  kernels.copy_streaming(out_.data(), rows_.data(), bytes);
  store_fence();
  return milliseconds(start, Clock::now());
}

void RoutingMoves::spoil() {
  std::memset(rows_.data(), 0xff, at(rows_.size()));
  std::memset(out_.data(), 0xff, at(out_.size()));
  std::fill(positions_.begin(), positions_.end(), -2);
}

std::string RoutingMoves::check() const {
  for (std::int64_t i = 0; i < point_.tokens * k_; ++i) {
    const std::int64_t place = plan_.places[at(i)];
    const std::int64_t expected = place < 0 ? -1 : plan_.starts[at(gate_.ids[at(i)])] + place;
    if (positions_[at(i)] != expected)
      return fmt::format("choice {} of token {} is in row {}, not {}", i % k_, i / k_, positions_[at(i)],
                         expected);
  }
  const std::int64_t step = std::max<std::int64_t>(point_.tokens / kCheckedTokens, 1);
  for (std::int64_t token = 0; token < point_.tokens; token += step) {
    std::string wrong = check_rows(token);
    if (wrong.empty()) wrong = check_sum(token);
    if (!wrong.empty()) return wrong;
  }
  return {};
}

std::string RoutingMoves::check_rows(std::int64_t token) const {
  const std::byte* from = tokens_.data() + token * row_bytes_;
  for (std::int64_t k = 0; k < k_; ++k) {
    const std::int64_t row = positions_[at(token * k_ + k)];
    if (row >= 0 && std::memcmp(rows_.data() + row * row_bytes_, from, at(row_bytes_)) != 0)
      return fmt::format("row {} is not that of token {}", row, token);
  }
  return {};
}

/// The experts change nothing, so a sum is the token times the weights it has left. fp32 rounds K times, the output once.
std::string RoutingMoves::check_sum(std::int64_t token) const {
  double weight = 0;
  double magnitude = 0;
  for (std::int64_t k = 0; k < k_; ++k) {
    if (positions_[at(token * k_ + k)] < 0) continue;
    weight += static_cast<double>(weights_[at(token * k_ + k)]);
    magnitude += std::abs(static_cast<double>(weights_[at(token * k_ + k)]));
  }
  const double half_place = point_.dtype == DType::f32   ? 0x1p-24
                            : point_.dtype == DType::f16 ? 0x1p-11
                                                         : 0x1p-8;
  const double relative = 1.01 * half_place + static_cast<double>(k_) * 0x1p-24;
  for (std::int64_t h = 0; h < point_.hidden; ++h) {
    const auto x = static_cast<double>(load_element(point_.dtype, tokens_.data() + token * row_bytes_, h));
    const auto sum = static_cast<double>(load_element(point_.dtype, out_.data() + token * row_bytes_, h));
    // f16 counts in steps of 2^-24 where it is smallest.
    if (!(std::abs(sum - x * weight) <= std::abs(x) * magnitude * relative + 0x1p-24))
      return fmt::format("element {} of the sum of token {} is {}, not {}", h, token, sum, x * weight);
  }
  return {};
}

}  // namespace shunt::bench
