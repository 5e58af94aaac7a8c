#include "put_exchange.h"

#include <algorithm>
#include <vector>

#include <fmt/format.h>

#include <shunt/core/error.h>
#include <shunt/transport/collectives.h>

namespace shunt::bench {
namespace {

/// Pieces from one rank to another in one exchange: rows, scales, ids.
constexpr std::int64_t kMostPieces = 4;

/// Every rank hears from every other in each exchange, if only that nothing comes. So a rank that goes on to the next
/// one knows that the others have ended the one before, and the methods' alternation of dispatch and combine keeps
/// memory from being written while it is read.
class PutExchange final : public GpuExchange {
 public:
  PutExchange(const MethodContext& context, StreamPuts& puts)
      : transport_(context.transport),
        puts_(puts),
        id_(transport_.world().rank),
        ranks_(transport_.world().size),
        deadline_(context.settings.deadline),
        sizes_(transport_.make_collectives(std::int64_t{8} * ranks_, Clock::now() + deadline_)),
        words_(transport_.allocate(ranks_ * kMostPieces * kSignalStride, "the exchange's signals",
                                   Clock::now() + deadline_)),
        far_(static_cast<std::size_t>(words_.bytes) / sizeof(std::uint64_t), std::uint64_t{1} << 62U) {}
  ~PutExchange() override {
    for (SymmetricBuffer& buffer : buffers_) transport_.release(buffer);
    transport_.release(words_);
  }
  PutExchange(const PutExchange&) = delete;
  PutExchange& operator=(const PutExchange&) = delete;

  std::byte* allocate(std::int64_t bytes) override {
    std::vector<std::int64_t> all(static_cast<std::size_t>(ranks_));
    sizes_->allgather(&bytes, sizeof bytes, all.data(), deadline_);
    buffers_.push_back(transport_.allocate(*std::max_element(all.begin(), all.end()),
                                           "what the exchange moves", Clock::now() + deadline_));
    return buffers_.back().local;
  }

  void exchange(std::span<const SendPiece> sends, std::span<const ReceivePiece> receives,
                GpuStream& stream) override {
    ++epoch_;
    sent_.assign(static_cast<std::size_t>(ranks_), 0);
    received_ = sent_;
    for (const SendPiece& piece : sends) {
      const Place place = piece.bytes == 0 ? Place{&words_, 0} : find(piece.to, piece.bytes);
      puts_.put_signal(piece.peer, *place.buffer, place.offset, piece.data, piece.bytes, words_,
                       word(id_, sent_[static_cast<std::size_t>(piece.peer)]++), epoch_, stream.handle());
    }
    for (const ReceivePiece& piece : receives)
      puts_.wait(words_, word(piece.peer, received_[static_cast<std::size_t>(piece.peer)]++), epoch_,
                 stream.handle());
  }

  /// Waits on the own stream end; what they waited for is not there. An all-to-all of the library goes on.
  void abort() noexcept override {
    try {
      transport_.put(words_, id_, 0, far_.data(), words_.bytes);
    } catch (const Error&) {
      // Memory of its own is always reached; the stream's deadline stands anyway.
    }
  }

  bool all_to_all(const void* from, void* to, std::int64_t bytes, GpuStream& stream) override {
    if (bytes == 0) return true;
    const Place place = find(to, bytes * ranks_);
    puts_.all_to_all(*place.buffer, place.offset, from, bytes, stream.handle());
    return true;
  }

 private:
  struct Place {
    const SymmetricBuffer* buffer;
    std::int64_t offset;
  };

  [[nodiscard]] Place find(const void* address, std::int64_t bytes) const {
    // Addresses of different memory may be compared as numbers only.
    const auto at = reinterpret_cast<std::uintptr_t>(address);
    for (const SymmetricBuffer& buffer : buffers_) {
      const auto begin = reinterpret_cast<std::uintptr_t>(buffer.local);
      if (at >= begin &&
          at + static_cast<std::uintptr_t>(bytes) <= begin + static_cast<std::uintptr_t>(buffer.bytes))
        return {&buffer, static_cast<std::int64_t>(at - begin)};
    }
    throw Error(
        Errc::internal,
        fmt::format("rank {}: a piece of {} bytes would not lie in the exchange's memory", id_, bytes));
  }
  [[nodiscard]] std::int64_t word(std::int32_t source, std::int64_t piece) const {
    if (piece >= kMostPieces)
      throw Error(Errc::internal, fmt::format("rank {}: more than {} pieces for one rank", id_, kMostPieces));
    return (source * kMostPieces + piece) * kSignalStride;
  }

  Transport& transport_;
  StreamPuts& puts_;
  std::int32_t id_;
  std::int32_t ranks_;
  std::chrono::milliseconds deadline_;
  std::unique_ptr<Collectives> sizes_;
  SymmetricBuffer words_;           ///< [R, kMostPieces] by source
  std::vector<std::uint64_t> far_;  ///< As long as words_; beyond every epoch
  std::vector<SymmetricBuffer> buffers_;
  std::uint64_t epoch_ = 0;
  std::vector<std::int64_t> sent_, received_;  ///< [R] pieces of this exchange so far
};

}  // namespace

std::unique_ptr<GpuExchange> make_put_exchange(const MethodContext& context, StreamPuts& puts) {
  return std::make_unique<PutExchange>(context, puts);
}

std::unique_ptr<GpuExchange> make_nvshmem_exchange(const MethodContext& context) {
  StreamPuts* const puts = stream_puts(context.transport);
  if (puts == nullptr) throw Error(Errc::unavailable, nvshmem_unsuited(context.transport));
  return make_put_exchange(context, *puts);
}

std::string nvshmem_unsuited(const Transport& transport) {
  if (stream_puts(transport) != nullptr) return {};
  return fmt::format("the ranks' transport is {}; with --transport nvshmem their memory is NVSHMEM's",
                     transport.name());
}

}  // namespace shunt::bench
