#include <algorithm>
#include <cstring>

#include "packed.h"

namespace shunt::bench {
namespace {

constexpr std::int64_t kHeader = 64;  // the number of items, in front of the items of a piece

/// The same layout on every rank: signals [2, R], then dispatch pieces [R], then combine pieces [R].
struct RegionLayout {
  explicit RegionLayout(const Workload& workload) : ranks(workload.point().ranks) {
    std::int64_t sent = 0;
    std::int64_t returned = 0;
    for (std::int32_t from = 0; from < ranks; ++from)
      for (std::int32_t to = 0; to < ranks; ++to) {
        sent = std::max(sent, workload.sent_rows(from, to));
        returned = std::max(returned, workload.returned_rows(from, to));
      }
    piece_bytes[0] = round_up(kHeader + sent * item_bytes(workload), 128);
    piece_bytes[1] = round_up(kHeader + returned * result_bytes(workload), 128);
  }
  [[nodiscard]] std::int64_t signal(std::int32_t source, bool results) const {
    return (source + (results ? ranks : 0)) * kSignalStride;
  }
  [[nodiscard]] std::int64_t piece(std::int32_t source, bool results) const {
    return 2 * ranks * kSignalStride + (results ? ranks * piece_bytes[0] : 0) +
           source * piece_bytes[results ? 1 : 0];
  }
  [[nodiscard]] std::int64_t total() const { return piece(ranks, true); }
  std::int32_t ranks;
  std::int64_t piece_bytes[2];
};

/// Items travel by put_signal into a piece per source, the count in front of them; no count exchange of its
/// own. A piece is written again only after its reader's signal of the other half arrived, so one copy of
/// each is enough.
class PutMethod final : public PackedMethod {
 public:
  PutMethod(const MethodContext& context, const PackKernels& kernels)
      : PackedMethod(context, kernels), layout_(workload_) {}

 private:
  bool exchange_counts() override { return false; }

  std::byte* outgoing(std::int32_t peer, bool results) override {
    return memory_.pack.data() + peer * layout_.piece_bytes[results ? 1 : 0] + kHeader;
  }

  void exchange(bool results) override {
    if (!results) ++memory_.region_epoch;
    const std::int64_t item = results ? result_bytes(workload_) : item_bytes(workload_);
    const auto& items = results ? return_items_ : send_items_;
    for (std::int32_t step = 0; step < ranks_; ++step) {
      const std::int32_t peer = (rank_ + step) % ranks_;
      const std::int64_t count = items[static_cast<std::size_t>(peer)];
      std::byte* piece = outgoing(peer, results) - kHeader;
      std::memcpy(piece, &count, sizeof count);
      transport_.put_signal(memory_.region, peer, layout_.piece(rank_, results), piece,
                            kHeader + count * item, layout_.signal(rank_, results), memory_.region_epoch);
    }
    transport_.quiet();
    const Deadline until = Clock::now() + deadline_;
    for (std::int32_t step = 0; step < ranks_; ++step) {
      const std::int32_t peer = (rank_ + ranks_ - step) % ranks_;
      transport_.wait_signal(
          memory_.region, layout_.signal(peer, results), memory_.region_epoch, until,
          WaitSite{.phase = results ? "combine exchange" : "dispatch exchange", .peer = peer});
    }
  }

  Piece incoming(std::int32_t peer, bool results) override {
    const std::byte* piece = memory_.region.local + layout_.piece(peer, results);
    Piece found{.data = piece + kHeader};
    std::memcpy(&found.items, piece, sizeof found.items);
    return found;
  }

  RegionLayout layout_;
};

}  // namespace

SharedSizes put_sizes(const Workload& workload) {
  const RegionLayout layout(workload);
  SharedSizes sizes;
  sizes.region = layout.total();
  sizes.pack = layout.ranks * std::max(layout.piece_bytes[0], layout.piece_bytes[1]);
  sizes.rows = packed_rows_bytes(workload);
  sizes.outputs = workload.max_arriving_rows() * workload.out_row_bytes();
  return sizes;
}

std::unique_ptr<Method> make_put_method(const MethodContext& context, const PackKernels& kernels) {
  return std::make_unique<PutMethod>(context, kernels);
}

}  // namespace shunt::bench
