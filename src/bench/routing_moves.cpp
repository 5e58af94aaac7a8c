#include "routing_moves.h"

#include <sys/mman.h>

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

/// Token rows that differ in every element; the others repeat them but for their first elements.
constexpr std::int64_t kDistinctRows = 61;
/// Tokens whose rows and sums are compared.
constexpr std::int64_t kCheckedTokens = 512;
/// From here on huge pages, of this size, save time.
constexpr std::int64_t kHuge = std::int64_t{4} << 20;
constexpr std::size_t kHugePage = std::size_t{2} << 20;
/// Of the L3 that many cores share, one rarely has more.
constexpr std::int64_t kMostCached = std::int64_t{32} << 20;

std::size_t at(std::int64_t i) {
  return static_cast<std::size_t>(i);
}

double milliseconds(std::chrono::steady_clock::time_point from, std::chrono::steady_clock::time_point to) {
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
    : size_(bytes), data_(nullptr, {std::align_val_t{bytes < kHuge ? 64 : kHugePage}}) {
  const std::align_val_t alignment = data_.get_deleter().alignment;
  data_.reset(
      static_cast<std::byte*>(::operator new(at(std::max<std::int64_t>(bytes, 1)), alignment, std::nothrow)));
  if (data_ == nullptr)
    throw Error(Errc::out_of_memory, fmt::format("{} bytes could not be allocated", bytes));
  // Rows that lie anywhere need a translation each. Where the system refuses, small pages do.
  if (bytes >= kHuge) (void)madvise(data_.get(), at(bytes), MADV_HUGEPAGE);
  std::memset(data_.get(), 0, at(bytes));
}

const PackKernels& impl_kernels(const std::string& impl) {
  return impl == "scalar" ? pack_kernels(Isa::scalar) : pack_kernels();
}

std::int64_t RoutingMoves::memory_bytes(const RoutingPoint& point) {
  return (2 + point.top_k) * point.tokens * point.hidden * dtype_bytes(point.dtype);
}

RoutingMoves::RoutingMoves(const RoutingPoint& point, const GateOutput<float>& gate, const CapacityPlan& plan,
                           std::int64_t capacity, Team& team)
    : point_(point),
      gate_(gate),
      plan_(plan),
      team_(team),
      capacity_(capacity),
      k_(gate.top_k),
      row_bytes_(point.hidden * dtype_bytes(point.dtype)),
      packs_(point.work != RoutingWork::combine_only),
      sums_(point.work != RoutingWork::pack_only),
      streaming_(k_ * point.tokens * row_bytes_ > std::min(read_host_info().l3_bytes / 4, kMostCached)),
      weights_(point.weighted ? apply_drops(gate, plan, point.renormalise).weights
                              : std::vector<float>(gate.weights.size(), 1.0F)),
      tokens_(point.tokens * row_bytes_),
      rows_(k_ * point.tokens * row_bytes_),
      out_(point.tokens * row_bytes_),
      next_(at(point.num_experts) + 1),
      positions_(at(point.tokens * k_)) {
  for (std::int32_t part = 0; part < team.size(); ++part) summed_.emplace_back(at(2 * k_));
  fill_tokens(point, tokens_.data());
  if (packs_) return;
  place();
  pack<false>(pack_kernels(Isa::scalar), 0, point_.tokens);
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
void RoutingMoves::pack(const PackKernels& kernels, std::int64_t from_token, std::int64_t to_token) {
  const std::int32_t* position = positions_.data() + from_token * k_;
  for (std::int64_t t = from_token; t < to_token; ++t) {
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
void RoutingMoves::combine(const PackKernels& kernels, std::vector<const void*>& rows,
                           std::int64_t from_token, std::int64_t to_token) {
  // The rows of a token and, behind them, those of the next, which lie anywhere.
  const auto find = [&](std::int64_t t, std::int64_t slot) {
    for (std::int64_t k = 0; k < k_; ++k) {
      const std::int64_t row = t < to_token ? positions_[at(t * k_ + k)] : -1;
      rows[at(slot * k_ + k)] = row < 0 ? nullptr : rows_.data() + row * row_bytes_;
    }
  };
  find(from_token, 0);
  for (std::int64_t t = from_token; t < to_token; ++t) {
    find(t + 1, 1);
    for (std::int64_t k = k_; !Streaming && k < 2 * k_; ++k)
      if (rows[at(k)] != nullptr) prefetch_to_read(rows[at(k)]);
    kernels.weighted_sum({.rows = rows.data(),
                          .weights = weights_.data() + t * k_,
                          .num_rows = k_,
                          .hidden = point_.hidden,
                          .row_dtype = point_.dtype,
                          .out_dtype = point_.dtype,
                          .out = out_.data() + t * row_bytes_,
                          .streaming = Streaming,
                          .next_rows = rows.data() + k_});
    std::copy_n(rows.begin() + k_, k_, rows.begin());
  }
  if constexpr (Streaming) store_fence();
}

RoutingTook RoutingMoves::halves(Clock::time_point start, Clock::time_point packed) const {
  return {packs_ ? milliseconds(start, packed) : 0, sums_ ? milliseconds(packed, Clock::now()) : 0};
}

RoutingTook RoutingMoves::run(const PackKernels& kernels) {
  const auto start = Clock::now();
  const bool streaming = streaming_ && kernels.isa != Isa::scalar;
  if (packs_) {
    place();
    team_.share(point_.tokens, [&](std::int32_t /*part*/, std::int64_t from, std::int64_t to) {
      if (streaming)
        pack<true>(kernels, from, to);
      else
        pack<false>(kernels, from, to);
    });
  }
  const auto packed = Clock::now();
  if (sums_) {
    team_.share(point_.tokens, [&](std::int32_t part, std::int64_t from, std::int64_t to) {
      if (streaming)
        combine<true>(kernels, summed_[at(part)], from, to);
      else
        combine<false>(kernels, summed_[at(part)], from, to);
    });
  }
  return halves(start, packed);
}

RoutingTook RoutingMoves::run_torch() {
  const auto step = [this](std::int32_t which) {
    if (const char* said = torch_->run(which); said != nullptr)
      throw Error(Errc::internal, fmt::format("--impl torch: libtorch says: {}", said));
  };
  const auto start = Clock::now();
  if (packs_) step(TorchMovesWork::kPack);
  const auto packed = Clock::now();
  if (sums_) step(TorchMovesWork::kCombine);
  return halves(start, packed);
}

void RoutingMoves::read_torch_positions() {
  std::int64_t count = 0;
  const std::int64_t* choices = torch_->choices(count);
  std::fill(positions_.begin(), positions_.end(), -1);
  for (std::int64_t row = 0; row < count; ++row)
    positions_[at(choices[row])] = static_cast<std::int32_t>(row);
}

RoutingRunner RoutingMoves::runner(const std::string& impl) {
  if (impl != "torch") {
    const PackKernels& kernels = impl_kernels(impl);
    return {.run = [this, &kernels] { return run(kernels); },
            .check = [this] { return check(); },
            .isa = isa_name(kernels.isa),
            .written = {}};
  }
  const TorchTable& torch = torch_plugin();
  const char* error = nullptr;
  torch_.reset(torch.make_moves({.tokens = point_.tokens,
                                 .hidden = point_.hidden,
                                 .num_experts = point_.num_experts,
                                 .top_k = static_cast<std::int32_t>(k_),
                                 .dtype = point_.dtype,
                                 .capacity = capacity_,
                                 .x = tokens_.data(),
                                 .ids = gate_.ids.data(),
                                 .weights = point_.weighted ? weights_.data() : nullptr,
                                 .rows = rows_.data(),
                                 .out = out_.data(),
                                 .threads = team_.size()},
                                error));
  if (torch_ == nullptr) throw Error(Errc::internal, fmt::format("--impl torch: libtorch says: {}", error));
  std::string written = packs_ ? torch_->formulation(TorchMovesWork::kPack) : "";
  if (sums_) written += (packs_ ? "; " : "") + std::string(torch_->formulation(TorchMovesWork::kCombine));
  return {.run = [this] { return run_torch(); },
          .check =
              [this] {
                if (packs_) read_torch_positions();
                // Some of its ways round weights, products and every partial sum to the dtype.
                return check(3 * static_cast<double>(k_) + 1);
              },
          .isa = fmt::format("torch {}", torch.version),
          .written = std::move(written)};
}

double RoutingMoves::copy(std::int64_t k) {
  const PackKernels& kernels = pack_kernels();
  const auto start = Clock::now();
  const std::int64_t bytes = tokens_.size();
  team_.run([&](std::int32_t part) {
    // Every piece is cut alike, so a thread reads what it wrote itself.
    const auto piece = [&](std::byte* to, const std::byte* from, std::int64_t size) {
      const std::int64_t begin = size * part / team_.size();
      kernels.copy_streaming(to + begin, from + begin, size * (part + 1) / team_.size() - begin);
    };
    if (packs_ && sums_) {
      for (std::int64_t i = 0; i < k; ++i) piece(rows_.data() + i % k_ * bytes, tokens_.data(), bytes);
      piece(out_.data(), rows_.data(), bytes);
    } else {
      // One half moves 1 + K times half as much.
      for (std::int64_t i = 0; i <= k; ++i) {
        std::byte* row = rows_.data() + i % (2 * k_) * (bytes / 2);
        if (packs_)
          piece(row, tokens_.data() + i % 2 * (bytes / 2), bytes / 2);
        else
          piece(out_.data() + i % 2 * (bytes / 2), row, bytes / 2);
      }
    }
    store_fence();
  });
  return milliseconds(start, Clock::now());
}

void RoutingMoves::spoil() {
  if (sums_) std::memset(out_.data(), 0xff, at(out_.size()));
  if (!packs_) return;
  std::memset(rows_.data(), 0xff, at(rows_.size()));
  std::fill(positions_.begin(), positions_.end(), -2);
}

std::string RoutingMoves::check(double roundings) const {
  for (std::int64_t i = 0; i < point_.tokens * k_; ++i) {
    const std::int64_t place = plan_.places[at(i)];
    const std::int64_t expected = place < 0 ? -1 : plan_.starts[at(gate_.ids[at(i)])] + place;
    if (positions_[at(i)] != expected)
      return fmt::format("choice {} of token {} is in row {}, not {}", i % k_, i / k_, positions_[at(i)],
                         expected);
  }
  const std::int64_t step = std::max<std::int64_t>(point_.tokens / kCheckedTokens, 1);
  for (std::int64_t token = 0; token < point_.tokens; token += step) {
    std::string wrong = packs_ ? check_rows(token) : "";
    if (wrong.empty() && sums_) wrong = check_sum(token, roundings);
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
std::string RoutingMoves::check_sum(std::int64_t token, double roundings) const {
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
  const double relative = 1.01 * roundings * half_place + static_cast<double>(k_) * 0x1p-24;
  for (std::int64_t h = 0; h < point_.hidden; ++h) {
    const auto x = static_cast<double>(load_element(point_.dtype, tokens_.data() + token * row_bytes_, h));
    const auto sum = static_cast<double>(load_element(point_.dtype, out_.data() + token * row_bytes_, h));
    // f16 counts in steps of 2^-24 where it is smallest.
    if (!(std::abs(sum - x * weight) <= std::abs(x) * magnitude * relative + roundings * 0x1p-24))
      return fmt::format("element {} of the sum of token {} is {}, not {}", h, token, sum, x * weight);
  }
  return {};
}

}  // namespace shunt::bench
