#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <exception>
#include <vector>

#include <fmt/format.h>

#include <shunt/core/error.h>
#include <shunt/core/random.h>
#include <shunt/transport/wrap.h>

namespace shunt {
namespace {

class Delayed final : public Transport {
 public:
  Delayed(Transport& inner, const DelayOptions& options)
      : Transport(inner.world()),
        inner_(inner),
        options_(options),
        random_(options.seed, static_cast<std::uint64_t>(inner.world().rank)),
        held_(static_cast<std::size_t>(inner.world().size)) {
    if (options_.nodes > 0) claim_nodes();
  }
  ~Delayed() override { release_all_or_drop(); }

  [[nodiscard]] std::string_view name() const noexcept override { return inner_.name(); }
  [[nodiscard]] std::string_view provider() const noexcept override { return inner_.provider(); }
  [[nodiscard]] Capabilities capabilities() const noexcept override {
    Capabilities result = inner_.capabilities();
    result.ordered = result.ordered && !options_.reorder;
    const bool some_hidden =
        options_.hide_load_store || (options_.hide_other_nodes && world_.num_nodes() > 1);
    result.load_store = result.load_store && !some_hidden;
    return result;
  }
  SymmetricBuffer allocate(std::int64_t bytes, const char* what, Deadline deadline) override {
    // The inner call waits for the peers, and they may wait for what is held here.
    release_all();
    return inner_.allocate(bytes, what, deadline);
  }
  void release(SymmetricBuffer& buffer) noexcept override {
    release_all_or_drop();
    inner_.release(buffer);
  }
  [[nodiscard]] std::byte* peer_pointer(const SymmetricBuffer& buffer,
                                        std::int32_t peer) const noexcept override {
    return hidden(peer) ? nullptr : inner_.peer_pointer(buffer, peer);
  }
  void put(const SymmetricBuffer& buffer, std::int32_t peer, std::int64_t offset, const void* from,
           std::int64_t bytes) override {
    hold({.kind = Kind::put, .buffer = buffer, .peer = peer, .offset = offset}, from, bytes);
  }
  void put_signal(const SymmetricBuffer& buffer, std::int32_t peer, std::int64_t offset, const void* from,
                  std::int64_t bytes, std::int64_t signal_offset, std::uint64_t value) override {
    hold({.kind = Kind::put_signal,
          .buffer = buffer,
          .peer = peer,
          .offset = offset,
          .signal_offset = signal_offset,
          .value = value},
         from, bytes);
  }
  void signal(const SymmetricBuffer& buffer, std::int32_t peer, std::int64_t signal_offset,
              std::uint64_t value) override {
    hold({.kind = Kind::signal,
          .buffer = buffer,
          .peer = peer,
          .signal_offset = signal_offset,
          .value = value},
         nullptr, 0);
  }
  std::uint64_t wait_signal(const SymmetricBuffer& buffer, std::int64_t signal_offset, std::uint64_t value,
                            Deadline deadline, const WaitSite& site) override;
  std::uint64_t poll_signal(const SymmetricBuffer& buffer, std::int64_t signal_offset) override {
    // A poll waits for nobody, and what other operations meet is not its business.
    release_due(Clock::now(), false);
    return inner_.poll_signal(buffer, signal_offset);
  }
  // Collectives and agreements over device memory are the inner one's affair.
  [[nodiscard]] Transport& host() noexcept override {
    return inner_.capabilities().device_memory ? inner_.host() : *this;
  }
  void set_wait_breaker(WaitBreaker* breaker) noexcept override { inner_.set_wait_breaker(breaker); }
  void set_waits_for_room(bool on) noexcept override {
    waits_ = on;
    inner_.set_waits_for_room(on);
  }
  void exclude(std::span<const std::int32_t> ranks) override {
    inner_.exclude(ranks);
    excluded_.resize(static_cast<std::size_t>(world_.size));
    for (std::int32_t rank = 0; rank < world_.size; ++rank)
      excluded_[static_cast<std::size_t>(rank)] = inner_.excluded(rank) ? 1 : 0;
  }
  void fence() override {
    ++fences_;
    inner_.fence();
  }
  void quiet() override {
    release_all();
    inner_.quiet();
    sent_.clear();
  }

 private:
  enum class Kind : std::uint8_t { put, put_signal, signal };
  struct Operation {
    Kind kind = Kind::put;
    SymmetricBuffer buffer = {};
    std::int32_t peer = 0;
    std::int64_t offset = 0;
    std::int64_t signal_offset = 0;
    std::uint64_t value = 0;
    std::uint64_t fences = 0;  ///< fence() calls before it
    Clock::time_point due = {};
    std::vector<std::byte> payload = {};
  };

  [[nodiscard]] bool hidden(std::int32_t peer) const noexcept {
    if (peer == world_.rank || peer < 0 || peer >= world_.size) return false;
    return options_.hide_load_store || (options_.hide_other_nodes && world_.node_of(peer) != world_.node);
  }
  void claim_nodes();
  void check(const SymmetricBuffer& buffer, std::int32_t peer, std::int64_t offset, std::int64_t bytes) const;
  void hold(Operation operation, const void* from, std::int64_t bytes);
  [[nodiscard]] Clock::duration random_delay();
  [[nodiscard]] bool must_follow(const Operation& later, const Operation& earlier) const noexcept;
  void carry_out(Operation& operation, bool waits);
  bool release_due(Clock::time_point now, bool waits);
  void release_all() {
    static_cast<void>(release_due(Clock::time_point::max(), waits_));
    if (sent_.empty() || !waits_) return;
    inner_.quiet();
    sent_.clear();
  }
  void release_all_or_drop() noexcept;

  Transport& inner_;
  DelayOptions options_;
  Random random_;
  std::uint64_t fences_ = 0;
  bool waits_ = true;
  bool releasing_ = false;                    ///< A wait of the inner transport may ask for a poll
  std::vector<std::vector<std::byte>> sent_;  ///< Payloads that the inner transport may still read
  std::vector<std::vector<Operation>> held_;  ///< By peer, in the order of the calls
};

void Delayed::claim_nodes() {
  const std::int32_t nodes = std::min(options_.nodes, world_.size);
  const auto node_of = [&](std::int32_t rank) {
    return static_cast<std::int32_t>(std::int64_t{rank} * nodes / world_.size);
  };
  world_.nodes.clear();
  for (std::int32_t rank = 0; rank < world_.size; ++rank) world_.nodes.push_back(node_of(rank));
  world_.node = node_of(world_.rank);
  world_.local_rank = static_cast<std::int32_t>(
      std::count(world_.nodes.begin(), world_.nodes.begin() + world_.rank, world_.node));
}

Clock::duration Delayed::random_delay() {
  if (random_.uniform() >= options_.probability) return Clock::duration::zero();
  const auto most = std::chrono::duration_cast<std::chrono::nanoseconds>(options_.max_delay).count();
  return std::chrono::nanoseconds(
      random_.below(static_cast<std::uint64_t>(std::max<std::int64_t>(most, 0)) + 1));
}

/// Here, because nobody could catch what the inner transport says when the operation is carried out.
void Delayed::check(const SymmetricBuffer& buffer, std::int32_t peer, std::int64_t offset,
                    std::int64_t bytes) const {
  if (buffer.id >= 0 && peer >= 0 && peer < world_.size && offset >= 0 && bytes >= 0 &&
      offset <= buffer.bytes - bytes) {
    return;
  }
  throw Error(
      Errc::invalid_argument,
      fmt::format("rank {}: {} bytes at offset {} of rank {}, but buffer {} has {} bytes on ranks 0 to {}",
                  world_.rank, bytes, offset, peer, buffer.id, buffer.bytes, world_.size - 1));
}

void Delayed::hold(Operation operation, const void* from, std::int64_t bytes) {
  if (operation.kind != Kind::signal) check(operation.buffer, operation.peer, operation.offset, bytes);
  if (operation.kind != Kind::put) check(operation.buffer, operation.peer, operation.signal_offset, 8);
  const auto now = Clock::now();
  operation.due = now + random_delay();
  operation.fences = fences_;
  if (bytes > 0) {
    const auto* first = static_cast<const std::byte*>(from);
    operation.payload.assign(first, first + bytes);
  }
  held_[static_cast<std::size_t>(operation.peer)].push_back(std::move(operation));
  release_due(now, waits_);
}

/// What the contract of Transport promises and no more: a signal follows the payload it publishes, puts keep
/// to fences, and one signal word does not go back.
bool Delayed::must_follow(const Operation& later, const Operation& earlier) const noexcept {
  if (!options_.reorder || later.fences != earlier.fences) return true;
  const bool both_signal = later.kind != Kind::put && earlier.kind != Kind::put;
  if (both_signal && later.buffer.id == earlier.buffer.id && later.signal_offset == earlier.signal_offset)
    return true;
  switch (later.kind) {
    case Kind::put:
      return false;
    case Kind::put_signal:
      return earlier.kind == Kind::put;
    case Kind::signal:
      return earlier.kind != Kind::signal;
  }
  return true;
}

void Delayed::carry_out(Operation& operation, bool waits) {
  const auto bytes = static_cast<std::int64_t>(operation.payload.size());
  switch (operation.kind) {
    case Kind::put:
      inner_.put(operation.buffer, operation.peer, operation.offset, operation.payload.data(), bytes);
      break;
    case Kind::put_signal:
      inner_.put_signal(operation.buffer, operation.peer, operation.offset, operation.payload.data(), bytes,
                        operation.signal_offset, operation.value);
      break;
    case Kind::signal:
      inner_.signal(operation.buffer, operation.peer, operation.signal_offset, operation.value);
      return;
  }
  sent_.push_back(std::move(operation.payload));
  if (!waits) return;
  inner_.quiet();
  sent_.clear();
}

/// Carries out what is due and follows nothing that is held. Without `waits` an operation that finds no room stays
/// held, and one towards a rank that is gone is dropped: its call has returned long ago. Result: whether something is
/// still held.
bool Delayed::release_due(Clock::time_point now, bool waits) {
  if (releasing_) return true;
  struct Scope {
    Delayed& delayed;
    ~Scope() {
      delayed.releasing_ = false;
      delayed.inner_.set_waits_for_room(delayed.waits_);
    }
  } scope{*this};
  releasing_ = true;
  inner_.set_waits_for_room(waits);
  bool any = false;
  for (std::vector<Operation>& list : held_) {
    for (std::size_t at = 0; at < list.size();) {
      const auto self = list.begin() + static_cast<std::ptrdiff_t>(at);
      const bool blocked = self->due > now || std::any_of(list.begin(), self, [&](const Operation& earlier) {
                             return must_follow(*self, earlier);
                           });
      if (blocked) {
        ++at;
        continue;
      }
      Operation operation = std::move(*self);
      list.erase(self);
      try {
        carry_out(operation, waits);
      } catch (const Error& error) {
        if (waits) throw;
        if (error.code() == Errc::peer_lost) continue;
        if (error.code() != Errc::timeout) throw;
        list.insert(list.begin() + static_cast<std::ptrdiff_t>(at), std::move(operation));
        break;
      }
    }
    any = any || !list.empty();
  }
  return any;
}

/// Where an error has nobody to go to; the inner transport is dead then and says so at its next wait.
void Delayed::release_all_or_drop() noexcept {
  try {
    release_all();
  } catch (const std::exception&) {
    for (std::vector<Operation>& list : held_) list.clear();
  }
}

std::uint64_t Delayed::wait_signal(const SymmetricBuffer& buffer, std::int64_t signal_offset,
                                   std::uint64_t value, Deadline deadline, const WaitSite& site) {
  const auto arrived = [&] {
    // Memory of a device cannot be looked at from here.
    if (inner_.capabilities().device_memory || buffer.local == nullptr) return false;
    auto* word = reinterpret_cast<std::uint64_t*>(buffer.local + signal_offset);
    const std::uint64_t seen = std::atomic_ref(*word).load(std::memory_order_acquire);
    return static_cast<std::int64_t>(seen - value) >= 0;
  };
  check(buffer, world_.rank, signal_offset, 8);
  const auto resume = Clock::now() + random_delay();
  // The peer may wait for what is held here, so that goes on meanwhile; what is still held when the signal is
  // there stays held.
  for (auto now = Clock::now(); now < deadline; now = Clock::now()) {
    const bool holding = release_due(now, true);
    if (now >= resume && (!holding || arrived())) break;
    sched_yield();
  }
  if (!arrived()) release_all();
  return inner_.wait_signal(buffer, signal_offset, value, deadline, site);
}

}  // namespace

std::unique_ptr<Transport> make_delayed(Transport& inner, const DelayOptions& options) {
  return std::make_unique<Delayed>(inner, options);
}

}  // namespace shunt
