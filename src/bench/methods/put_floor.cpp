#include <algorithm>
#include <chrono>
#include <cstring>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include <shunt/pack/kernels.h>

#include "../agreement.h"
#include "floors.h"
#include "packed.h"

namespace shunt::bench {
namespace {

std::int64_t now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now().time_since_epoch()).count();
}

/// xcopy where some ranks' memory cannot be loaded: the least bytes that must cross as one put with signal for each
/// pair of ranks, and copies between ranks that share memory. Unlike the copies, puts are waited for by who gets
/// them: handing them over is not moving them.
class PutFloorMethod final : public Method {
 public:
  PutFloorMethod(const MethodContext& context, bool node)
      : workload_(context.workload),
        memory_(context.memory),
        transport_(context.transport),
        deadline_(context.settings.deadline),
        rank_(context.transport.world().rank),
        ranks_(context.transport.world().size),
        payload_(workload_.row_bytes() + workload_.scale_bytes()),
        node_of_(separate_nodes(context.transport)) {
    if (node_of_.empty()) node_of_.assign(static_cast<std::size_t>(ranks_), 0);
    rows_.assign(static_cast<std::size_t>(ranks_) * static_cast<std::size_t>(ranks_), 0);
    for (std::int32_t source = 0; source < ranks_; ++source) count_rows(source, node);
    for (std::int32_t source = 0; source < ranks_; ++source) present_ += rows(source, rank_);
  }

  void dispatch() override {
    span_.begin_ns = now_ns();
    ++memory_.region_epoch;
    for (std::int32_t step = 1; step < ranks_; ++step) {
      const std::int32_t peer = (rank_ + step) % ranks_;
      if (together(rank_, peer) || rows(rank_, peer) == 0) continue;
      transport_.put_signal(memory_.region, peer, place(rank_, peer), memory_.symmetric_tokens.local,
                            rows(rank_, peer) * payload_, rank_ * kSignalStride, memory_.region_epoch);
    }
    for (std::int32_t step = 0; step < ranks_; ++step) {
      const std::int32_t peer = (rank_ + step) % ranks_;
      if (together(rank_, peer)) copy_rows(peer);
    }
    store_fence();
    const Deadline until = Clock::now() + deadline_;
    for (std::int32_t step = 1; step < ranks_; ++step) {
      const std::int32_t peer = (rank_ + ranks_ - step) % ranks_;
      if (together(peer, rank_) || rows(peer, rank_) == 0) continue;
      transport_.wait_signal(memory_.region, peer * kSignalStride, memory_.region_epoch, until,
                             WaitSite{.phase = "floor of dispatch", .peer = peer});
    }
    span_.end_ns = now_ns();
    // The next step reads these tokens anew, so its puts must have left; to wait for that is no part of a floor.
    transport_.quiet();
  }
  [[nodiscard]] Span own_span() const noexcept override { return span_; }

  void touch() override {
    span_ = {};  // The harness's stamps count again.
    const Point& point = workload_.point();
    ScaledCopy copy{.hidden = point.hidden,
                    .from_dtype = point.in_dtype,
                    .block = kScaleBlock,
                    .to_dtype = point.out_dtype};
    if (workload_.num_scales() > 0) {
      copy.from_scale = ScaleType::f32;
      copy.from_scales = workload_.token_scales(workload_.group_of(rank_), 0);
    }
    // A row that came once for several experts is read for each of them.
    const std::byte* const first =
        present_ > 0 ? memory_.region.local + place(0, rank_) : memory_.rows.data();
    const std::int64_t turn = std::max(present_, std::int64_t{1});
    for (std::int64_t row = 0; row < workload_.arriving_rows(rank_); ++row) {
      copy.from = first + row % turn * payload_;
      copy.to = memory_.outputs.data() + row * workload_.out_row_bytes();
      pack_kernels().scaled_copy(copy);
    }
  }

  void combine() override {}
  [[nodiscard]] ArrivedRows arrived() const override { return {}; }
  [[nodiscard]] const std::byte* combined() const override { return nullptr; }
  void poison() override {
    std::memset(memory_.region.local + place(0, rank_), 0xff, static_cast<std::size_t>(present_ * payload_));
  }
  [[nodiscard]] std::span<std::byte> own_tokens() override {
    return {memory_.symmetric_tokens.local, static_cast<std::size_t>(share_bytes(rank_))};
  }

  [[nodiscard]] std::string check_own() const override {
    for (std::int32_t source = 0; source < ranks_; ++source) {
      const std::vector<std::byte> image = tokens_of(source);
      const std::byte* found = memory_.region.local + place(source, rank_);
      const std::int64_t window = share_bytes(source);
      for (std::int64_t left = rows(source, rank_) * payload_; left > 0; left -= window, found += window)
        if (std::memcmp(found, image.data(), static_cast<std::size_t>(std::min(left, window))) != 0)
          return fmt::format("the bytes from rank {} to rank {} differ", source, rank_);
    }
    return {};
  }

 private:
  [[nodiscard]] std::int32_t node(std::int32_t rank) const {
    return node_of_[static_cast<std::size_t>(rank)];
  }
  [[nodiscard]] bool together(std::int32_t a, std::int32_t b) const { return node(a) == node(b); }
  [[nodiscard]] std::int64_t& rows(std::int32_t source, std::int32_t to) {
    return rows_[static_cast<std::size_t>(source) * static_cast<std::size_t>(ranks_) +
                 static_cast<std::size_t>(to)];
  }
  [[nodiscard]] std::int64_t rows(std::int32_t source, std::int32_t to) const {
    return rows_[static_cast<std::size_t>(source) * static_cast<std::size_t>(ranks_) +
                 static_cast<std::size_t>(to)];
  }
  [[nodiscard]] std::int64_t share_bytes(std::int32_t rank) const {
    const TokenShare share = workload_.share(rank);
    return (share.end - share.begin) * payload_;
  }

  /// Offset in the region of `to` of the rows that `source` brings there.
  [[nodiscard]] std::int64_t place(std::int32_t source, std::int32_t to) const {
    std::int64_t before = 0;
    for (std::int32_t s = 0; s < source; ++s) before += rows(s, to);
    return 2 * ranks_ * kSignalStride + before * payload_;
  }

  /// Rows from `source` to every rank: one per selection within its node, one per token elsewhere.
  void count_rows(std::int32_t source, bool per_node) {
    const Routing& routing = workload_.routing(workload_.group_of(source));
    const TokenShare share = workload_.share(source);
    std::vector<std::int64_t> of_node(static_cast<std::size_t>(ranks_));
    std::vector<std::int64_t> seen_rank(static_cast<std::size_t>(ranks_), -1);
    std::vector<std::int64_t> seen_node(static_cast<std::size_t>(ranks_), -1);
    for (std::int64_t t = share.begin; t < share.end; ++t)
      for (std::int32_t k = 0; k < routing.top_k; ++k) {
        const std::int32_t expert = routing.ids[static_cast<std::size_t>(t * routing.top_k + k)];
        if (expert < 0) continue;
        const std::int32_t owner = workload_.partition().owner(expert);
        if (together(source, owner)) {
          ++rows(source, owner);
          continue;
        }
        if (!per_node && std::exchange(seen_rank[static_cast<std::size_t>(owner)], t) != t)
          ++rows(source, owner);
        if (std::exchange(seen_node[static_cast<std::size_t>(node(owner))], t) != t)
          ++of_node[static_cast<std::size_t>(node(owner))];
      }
    if (!per_node) return;
    // A node's tokens come in equal parts over all of its ranks.
    for (std::int32_t to = 0; to < ranks_; ++to) {
      if (together(source, to)) continue;
      const auto ranks_there = std::count(node_of_.begin(), node_of_.end(), node(to));
      const auto index = std::count(node_of_.begin(), node_of_.begin() + to, node(to));
      const std::int64_t all = of_node[static_cast<std::size_t>(node(to))];
      rows(source, to) = all / ranks_there + (index < all % ranks_there ? 1 : 0);
    }
  }

  void copy_rows(std::int32_t peer) const {
    std::byte* to = transport_.peer_pointer(memory_.region, peer) + place(rank_, peer);
    const std::int64_t window = share_bytes(rank_);
    for (std::int64_t left = rows(rank_, peer) * payload_; left > 0; left -= window, to += window)
      pack_kernels().copy(to, memory_.symmetric_tokens.local, std::min(left, window));
  }

  /// What lies in the symmetric tokens of `source`.
  [[nodiscard]] std::vector<std::byte> tokens_of(std::int32_t source) const {
    std::vector<std::byte> image(static_cast<std::size_t>(workload_.point().tokens * payload_));
    const std::int32_t group = workload_.group_of(source);
    const std::int64_t bytes = workload_.routing(group).num_tokens * workload_.row_bytes();
    if (bytes > 0) std::memcpy(image.data(), workload_.token(group, 0), static_cast<std::size_t>(bytes));
    return image;
  }

  const Workload& workload_;
  SharedMemory& memory_;
  Transport& transport_;
  std::chrono::milliseconds deadline_;
  std::int32_t rank_;
  std::int32_t ranks_;
  std::int64_t payload_;
  std::vector<std::int32_t> node_of_;  ///< [R] ranks of one node load each other's memory
  std::vector<std::int64_t> rows_;     ///< [R, R] from, to
  std::int64_t present_ = 0;           ///< Rows that lie here after dispatch
  Span span_;
};

}  // namespace

std::unique_ptr<Method> make_put_floor(const MethodContext& context, bool node) {
  return std::make_unique<PutFloorMethod>(context, node);
}

}  // namespace shunt::bench
