#include <algorithm>
#include <cstring>
#include <deque>
#include <memory>
#include <vector>

#include <fmt/format.h>

#include <shunt/core/error.h>
#include <shunt/core/random.h>
#include <shunt/transport/wrap.h>

namespace shunt {
namespace {

void check_probability(const char* what, double probability) {
  if (probability >= 0 && probability <= 1) return;
  throw Error(Errc::invalid_argument,
              fmt::format("faulty transport: {} probability {}; 0 to 1 are allowed", what, probability));
}

class Faulty final : public FaultyTransport {
 public:
  Faulty(Transport& inner, const FaultOptions& options)
      : FaultyTransport(inner.world()),
        inner_(inner),
        options_(options),
        random_(options.seed, static_cast<std::uint64_t>(inner.world().rank)),
        skip_(options.skip_operations) {
    check_probability("flip", options.flip_probability);
    check_probability("truncate", options.truncate_probability);
    for (std::int32_t rank = 0; rank < world_.size; ++rank) {
      if (!inner.excluded(rank)) continue;
      excluded_.resize(static_cast<std::size_t>(world_.size));
      excluded_[static_cast<std::size_t>(rank)] = 1;
    }
  }

  [[nodiscard]] std::string_view name() const noexcept override { return inner_.name(); }
  [[nodiscard]] std::string_view provider() const noexcept override { return inner_.provider(); }
  [[nodiscard]] Capabilities capabilities() const noexcept override { return inner_.capabilities(); }
  // Collectives and agreements over device memory are the inner one's affair.
  [[nodiscard]] Transport& host() noexcept override {
    return inner_.capabilities().device_memory ? inner_.host() : *this;
  }
  SymmetricBuffer allocate(std::int64_t bytes, const char* what, Deadline deadline) override {
    return inner_.allocate(bytes, what, deadline);
  }
  void release(SymmetricBuffer& buffer) noexcept override { inner_.release(buffer); }
  [[nodiscard]] std::byte* peer_pointer(const SymmetricBuffer& buffer,
                                        std::int32_t peer) const noexcept override {
    return inner_.peer_pointer(buffer, peer);
  }
  void put(const SymmetricBuffer& buffer, std::int32_t peer, std::int64_t offset, const void* from,
           std::int64_t bytes) override {
    const Payload payload = damage(peer, from, bytes);
    if (payload.bytes == bytes) return inner_.put(buffer, peer, offset, payload.from, bytes);
    // Where the whole would lie outside, the inner transport shall say so, and of the whole.
    inner_.put(buffer, peer, offset + bytes, payload.from, 0);
    inner_.put(buffer, peer, offset, payload.from, payload.bytes);
  }
  void put_signal(const SymmetricBuffer& buffer, std::int32_t peer, std::int64_t offset, const void* from,
                  std::int64_t bytes, std::int64_t signal_offset, std::uint64_t value) override {
    const Payload payload = damage(peer, from, bytes);
    if (payload.bytes != bytes) inner_.put(buffer, peer, offset + bytes, payload.from, 0);
    inner_.put_signal(buffer, peer, offset, payload.from, payload.bytes, signal_offset, value);
  }
  void signal(const SymmetricBuffer& buffer, std::int32_t peer, std::int64_t signal_offset,
              std::uint64_t value) override {
    inner_.signal(buffer, peer, signal_offset, value);
  }
  std::uint64_t wait_signal(const SymmetricBuffer& buffer, std::int64_t signal_offset, std::uint64_t value,
                            Deadline deadline, const WaitSite& site) override {
    return inner_.wait_signal(buffer, signal_offset, value, deadline, site);
  }
  std::uint64_t poll_signal(const SymmetricBuffer& buffer, std::int64_t signal_offset) override {
    return inner_.poll_signal(buffer, signal_offset);
  }
  void fence() override { inner_.fence(); }
  void quiet() override {
    inner_.quiet();
    copies_.clear();
  }
  void set_wait_breaker(WaitBreaker* breaker) noexcept override { inner_.set_wait_breaker(breaker); }
  void set_waits_for_room(bool on) noexcept override { inner_.set_waits_for_room(on); }
  void exclude(std::span<const std::int32_t> ranks) override {
    inner_.exclude(ranks);
    excluded_.resize(static_cast<std::size_t>(world_.size));
    for (std::int32_t rank = 0; rank < world_.size; ++rank)
      excluded_[static_cast<std::size_t>(rank)] = inner_.excluded(rank) ? 1 : 0;
  }

  [[nodiscard]] std::int64_t operations() const noexcept override { return operations_; }
  [[nodiscard]] std::int64_t damaged() const noexcept override { return damaged_; }

 private:
  struct Payload {
    const void* from = nullptr;
    std::int64_t bytes = 0;
  };
  [[nodiscard]] Payload damage(std::int32_t peer, const void* from, std::int64_t bytes);

  Transport& inner_;
  FaultOptions options_;
  Random random_;
  std::int64_t skip_;
  std::int64_t operations_ = 0;
  std::int64_t damaged_ = 0;
  std::deque<std::vector<std::byte>> copies_;  ///< Damaged payload, which may be read until quiet()
};

/// Each operation draws the same count of numbers, so that which ones are damaged depends on the seed and the
/// order alone.
Faulty::Payload Faulty::damage(std::int32_t peer, const void* from, std::int64_t bytes) {
  if (peer == world_.rank || bytes <= 0) return {from, bytes};
  ++operations_;
  if (skip_ > 0) {
    --skip_;
    return {from, bytes};
  }
  const bool flips = random_.uniform() < options_.flip_probability;
  const bool truncates = random_.uniform() < options_.truncate_probability;
  const auto count = static_cast<std::uint64_t>(bytes);
  const std::uint64_t bit = random_.below(8 * count);
  const auto missing = static_cast<std::int64_t>(1 + random_.below(count));
  if (!flips && !truncates) return {from, bytes};
  ++damaged_;
  const std::int64_t arrives = truncates ? bytes - missing : bytes;
  if (!flips || static_cast<std::int64_t>(bit / 8) >= arrives) return {from, arrives};
  const auto* first = static_cast<const std::byte*>(from);
  std::vector<std::byte>& copy = copies_.emplace_back(first, first + arrives);
  copy[static_cast<std::size_t>(bit / 8)] ^= static_cast<std::byte>(1U << (bit % 8));
  return {copy.data(), arrives};
}

}  // namespace

std::unique_ptr<FaultyTransport> make_faulty(Transport& inner, const FaultOptions& options) {
  return std::make_unique<Faulty>(inner, options);
}

}  // namespace shunt
