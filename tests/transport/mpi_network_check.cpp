// MpiNetwork without anything above it: run by mpirun, every rank a node of its own. Ends with a status.
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include <shunt/core/error.h>
#include <shunt/core/random.h>

#include "net/networks.h"

namespace shunt {
namespace {

using namespace std::chrono_literals;

constexpr std::int64_t kBytes = 9 << 20;

void require(bool good, const std::string& what) {
  if (!good) throw Error(Errc::check_failed, what);
}

[[nodiscard]] Deadline patience() {
  return Clock::now() + 60s;
}

/// Symmetric memory of a rank: signal words of every sender in front.
class Window {
 public:
  Window(Bootstrap& bootstrap, net::Network& network, std::int32_t id)
      : network_(network), id_(id), bytes_(static_cast<std::size_t>(kBytes)) {
    const net::MemoryName mine = network.expose(id, bytes_.data(), kBytes);
    std::vector<net::MemoryName> names(static_cast<std::size_t>(bootstrap.size()));
    bootstrap.allgather(&mine, sizeof mine, names.data(), patience(), "names");
    network.admit(id, names);
  }
  ~Window() { network_.withdraw(id_); }
  Window(const Window&) = delete;
  Window& operator=(const Window&) = delete;

  [[nodiscard]] std::byte* data() { return bytes_.data(); }
  [[nodiscard]] std::int32_t id() const { return id_; }
  void wait(std::int64_t at, std::uint64_t value, const char* what) {
    const Deadline end = patience();
    const std::atomic_ref word(*reinterpret_cast<std::uint64_t*>(bytes_.data() + at));
    while (word.load(std::memory_order_acquire) < value) {
      require(Clock::now() < end, std::string("no signal in ") + what);
      network_.progress();
      std::this_thread::yield();
    }
  }

 private:
  net::Network& network_;
  std::int32_t id_;
  std::vector<std::byte> bytes_;
};

struct Ranks {
  Bootstrap& bootstrap;
  net::Network& network;
  std::int32_t rank = bootstrap.rank();
  std::int32_t size = bootstrap.size();
  Window meeting{bootstrap, network, 1};
  std::uint64_t meetings = 0;

  /// Not by the bootstrap, whose waits know nothing of the network: a peer's put may need this rank's calls.
  void meet() {
    ++meetings;
    for (std::int32_t peer = 0; peer < size; ++peer) {
      if (peer != rank) network.signal(peer, meeting.id(), rank * kSignalStride, meetings);
    }
    for (std::int32_t peer = 0; peer < size; ++peer) {
      if (peer != rank) meeting.wait(peer * kSignalStride, meetings, "meeting");
    }
    network.quiet();
  }
};

/// Bytes of a put follow from (sender, number), so every byte of what lies there at the end is known.
[[nodiscard]] std::byte pattern(std::int32_t sender, std::uint64_t number, std::int64_t at) {
  return static_cast<std::byte>((sender * 37 + static_cast<std::int64_t>(number) * 11 + at * 7 + (at >> 9)) &
                                0xff);
}

/// Puts that overlap take effect in their order, and a signal follows all of them; both directions at once.
void overlapping_puts(Ranks& ranks) {
  Window window(ranks.bootstrap, ranks.network, 0);
  constexpr std::int64_t kArea = 400'000;
  const std::int64_t first = ranks.size * kSignalStride;
  const auto area = [&](std::int32_t sender) { return first + sender * kArea; };
  for (std::uint64_t step = 1; step <= 12; ++step) {
    for (std::int32_t sender = 0; sender < ranks.size; ++sender) {
      // Every rank draws what the others draw, so that it knows what to expect.
      const auto draw = [&](std::int32_t receiver, auto&& put) {
        Random random(step, static_cast<std::uint64_t>(sender * 64 + receiver));
        for (std::uint64_t number = 0; number < 60; ++number) {
          const std::int64_t most = number % 3 == 0 ? kArea / 2 : 20'000;
          const auto bytes = static_cast<std::int64_t>(random.below(static_cast<std::uint64_t>(most)));
          const auto at = static_cast<std::int64_t>(random.below(static_cast<std::uint64_t>(kArea - bytes)));
          put(step * 1000 + number, at, bytes);
        }
      };
      if (sender == ranks.rank) {
        std::vector<std::vector<std::byte>> sources;
        sources.reserve(60 * static_cast<std::size_t>(ranks.size));
        for (std::int32_t peer = 0; peer < ranks.size; ++peer) {
          if (peer == ranks.rank) continue;
          draw(peer, [&](std::uint64_t number, std::int64_t at, std::int64_t bytes) {
            std::vector<std::byte>& source = sources.emplace_back(static_cast<std::size_t>(bytes));
            for (std::int64_t i = 0; i < bytes; ++i)
              source[static_cast<std::size_t>(i)] = pattern(sender, number, i);
            ranks.network.put(peer, window.id(), area(sender) + at, source.data(), bytes);
          });
          ranks.network.signal(peer, window.id(), sender * kSignalStride, step);
        }
        ranks.network.quiet();
      }
    }
    std::vector<std::byte> expected(static_cast<std::size_t>(kArea));
    for (std::int32_t sender = 0; sender < ranks.size; ++sender) {
      if (sender == ranks.rank) continue;
      window.wait(sender * kSignalStride, step, "overlapping puts");
      std::memcpy(expected.data(), window.data() + area(sender), static_cast<std::size_t>(kArea));
      Random random(step, static_cast<std::uint64_t>(sender * 64 + ranks.rank));
      for (std::uint64_t number = 0; number < 60; ++number) {
        const std::int64_t most = number % 3 == 0 ? kArea / 2 : 20'000;
        const auto bytes = static_cast<std::int64_t>(random.below(static_cast<std::uint64_t>(most)));
        const auto at = static_cast<std::int64_t>(random.below(static_cast<std::uint64_t>(kArea - bytes)));
        for (std::int64_t i = 0; i < bytes; ++i)
          expected[static_cast<std::size_t>(at + i)] = pattern(sender, step * 1000 + number, i);
      }
      require(
          std::memcmp(expected.data(), window.data() + area(sender), static_cast<std::size_t>(kArea)) == 0,
          "rank " + std::to_string(ranks.rank) + ": puts of rank " + std::to_string(sender) +
              " took effect in another order in step " + std::to_string(step));
    }
    ranks.meet();
  }
}

/// What quiet() let go arrives while its sender makes no call at all.
void silent_sender(Ranks& ranks, std::int64_t bytes) {
  Window window(ranks.bootstrap, ranks.network, 0);
  const std::int64_t first = ranks.size * kSignalStride;
  std::vector<std::byte> source(static_cast<std::size_t>(bytes));
  for (std::int64_t i = 0; i < bytes; ++i) source[static_cast<std::size_t>(i)] = pattern(ranks.rank, 1, i);
  constexpr auto kSilence = 6s;
  if (ranks.rank == 0) {
    for (std::int64_t at = 0; at < bytes; at += 1 << 20)
      ranks.network.put(1, window.id(), first + at, source.data() + at,
                        std::min<std::int64_t>(1 << 20, bytes - at));
    ranks.network.signal(1, window.id(), 0, 1);
    ranks.network.quiet();
    std::memset(source.data(), 0xee, source.size());
    std::this_thread::sleep_for(kSilence);
  } else if (ranks.rank == 1) {
    const auto start = Clock::now();
    window.wait(0, 1, "what a silent rank sent");
    require(Clock::now() - start < kSilence, "the bytes came only when their sender called again");
    for (std::int64_t i = 0; i < bytes; ++i)
      require(window.data()[first + i] == pattern(0, 1, i),
              "byte " + std::to_string(i) + " of a silent rank");
  }
  ranks.meet();
}

/// What comes for memory that is gone does no harm to that which took its number.
void late_puts(Ranks& ranks) {
  Window window(ranks.bootstrap, ranks.network, 0);
  std::vector<std::byte> fresh(200'000);
  if (ranks.rank == 1) {
    ranks.network.withdraw(0);
    static_cast<void>(ranks.network.expose(0, fresh.data(), static_cast<std::int64_t>(fresh.size())));
  }
  ranks.meet();
  const std::vector<std::byte> source(200'000, std::byte{0x5a});
  if (ranks.rank == 0) {
    ranks.network.put(1, 0, 0, source.data(), 1000);
    ranks.network.put_signal(1, 0, 1000, source.data(), 150'000, 160'000, 7);
    ranks.network.signal(1, 0, 180'000, 7);
  }
  ranks.meet();
  for (const std::byte one : fresh)
    require(one == std::byte{0}, "bytes for old memory came into the new one");
}

int run() {
  mpi_begin();
  {
    const auto bootstrap = make_mpi_bootstrap();
    World world{.rank = bootstrap->rank(), .size = bootstrap->size(), .node = bootstrap->rank()};
    for (std::int32_t rank = 0; rank < world.size; ++rank) world.nodes.push_back(rank);
    const auto network = make_mpi_network(*bootstrap, world, {}, patience());
    Ranks ranks{.bootstrap = *bootstrap, .network = *network};
    overlapping_puts(ranks);
    for (const std::int64_t bytes : {std::int64_t{100}, std::int64_t{10'000}, std::int64_t{8} << 20})
      silent_sender(ranks, bytes);
    late_puts(ranks);
  }
  mpi_end();
  return 0;
}

}  // namespace
}  // namespace shunt

int main() try { return shunt::run(); } catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  shunt::mpi_abort(1);
  return 1;
}
