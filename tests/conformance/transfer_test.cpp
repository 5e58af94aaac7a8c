#include <array>
#include <cstring>

#include <shunt/core/random.h>

#include "conformance/world_case.h"

namespace shunt::conformance {
namespace {

class TransferConformance : public TransportConformance {};

constexpr std::byte kPoison{0};  // pattern() never gives it.

/// Words of one buffer: signals of every peer first, then acknowledgements of every peer, then payload.
struct Layout {
  std::int32_t size;
  std::int64_t slot;  ///< Payload bytes per sender

  [[nodiscard]] std::int64_t signal(std::int32_t sender) const { return sender * kSignalStride; }
  [[nodiscard]] std::int64_t acknowledged(std::int32_t receiver) const {
    return (size + receiver) * kSignalStride;
  }
  [[nodiscard]] std::int64_t payload(std::int32_t sender) const {
    return 2 * size * kSignalStride + sender * slot;
  }
  [[nodiscard]] std::int64_t bytes() const { return payload(size); }
};

/// Everyone tells everyone that its slots may be written again.
void acknowledge_all(Transport& transport, const SymmetricBuffer& buffer, const Layout& layout,
                     std::uint64_t step) {
  const std::int32_t rank = transport.world().rank;
  for (std::int32_t peer = 0; peer < layout.size; ++peer) {
    transport.signal(buffer, peer, layout.acknowledged(rank), step);
  }
  for (std::int32_t peer = 0; peer < layout.size; ++peer) {
    transport.wait_signal(buffer, layout.acknowledged(peer), step, patience(), {"acknowledge", peer});
  }
}

TEST_P(TransferConformance, ShowsPutsToWhoSawTheSignal) {
  run_well([](Transport& transport) {
    const std::int32_t rank = transport.world().rank;
    const Layout layout{transport.world().size, 20'000};
    auto buffer = transport.allocate(layout.bytes(), "slots", patience());
    std::vector<std::byte> source(20'000);
    const std::array<std::int64_t, 7> sizes = {0, 1, 63, 64, 1000, 14'336, 19'000};
    std::uint64_t step = 0;
    for (const std::int64_t bytes : sizes) {
      ++step;
      set_bytes(buffer.local + layout.payload(0), layout.size * layout.slot, kPoison);
      acknowledge_all(transport, buffer, layout, 2 * step - 1);
      for (std::int32_t peer = 0; peer < layout.size; ++peer) {
        fill(source.data(), bytes, rank, peer, static_cast<std::int64_t>(step));
        transport.put(buffer, peer, layout.payload(rank) + 500, source.data(), bytes);
        transport.quiet();
        transport.signal(buffer, peer, layout.signal(rank), step);
      }
      for (std::int32_t peer = 0; peer < layout.size; ++peer) {
        const std::uint64_t seen =
            transport.wait_signal(buffer, layout.signal(peer), step, patience(), {"dispatch", peer});
        require(seen == step, "the signal has another value");
        const std::byte* slot = buffer.local + layout.payload(peer);
        require_filled(slot + 500, bytes, peer, rank, static_cast<std::int64_t>(step), "put");
        require(bytes_at(slot + 499, 1)[0] == kPoison && bytes_at(slot + 500 + bytes, 1)[0] == kPoison,
                "put wrote beside its bytes");
      }
      acknowledge_all(transport, buffer, layout, 2 * step);
    }
    transport.release(buffer);
  });
}

TEST_P(TransferConformance, ShowsPayloadOfPutSignalWithItsSignal) {
  run_well([](Transport& transport) {
    const std::int32_t rank = transport.world().rank;
    // Four independent pieces per sender and step, each with its own word; they may arrive in any order.
    constexpr std::int64_t kPieces = 4;
    constexpr std::int64_t kPiece = 512;
    const std::int32_t size = transport.world().size;
    const auto word = [&](std::int32_t sender, std::int64_t piece) {
      return (sender * kPieces + piece) * 128;
    };
    const auto place = [&](std::int32_t sender, std::int64_t piece) {
      return (size * kPieces) * 128 + (sender * kPieces + piece) * kPiece;
    };
    const auto collectives = transport.make_collectives(8, patience());
    auto buffer = transport.allocate(place(size, 0), "pieces", patience());
    std::vector<std::byte> source(static_cast<std::size_t>(size * kPieces * kPiece));
    for (std::uint64_t step = 1; step <= 40; ++step) {
      for (std::int32_t peer = 0; peer < size; ++peer) {
        for (std::int64_t piece = 0; piece < kPieces; ++piece) {
          std::byte* from = source.data() + (peer * kPieces + piece) * kPiece;
          fill(from, kPiece, rank, peer, static_cast<std::int64_t>(step) + 100 * piece);
          transport.put_signal(buffer, peer, place(rank, piece), from, kPiece, word(rank, piece), step);
        }
      }
      for (std::int32_t peer = 0; peer < size; ++peer) {
        for (std::int64_t piece = kPieces - 1; piece >= 0; --piece) {
          transport.wait_signal(buffer, word(peer, piece), step, patience(), {"dispatch", peer});
          require_filled(buffer.local + place(peer, piece), kPiece, peer, rank,
                         static_cast<std::int64_t>(step) + 100 * piece, "put_signal");
        }
      }
      transport.quiet();
      collectives->barrier(kPatience);
    }
    transport.release(buffer);
  });
}

TEST_P(TransferConformance, SignalFollowsEverythingPutBefore) {
  run_well([](Transport& transport) {
    const std::int32_t rank = transport.world().rank;
    const Layout layout{transport.world().size, 4096};
    const std::int64_t words = layout.bytes();
    auto buffer = transport.allocate(words + layout.size * 8 * kSignalStride, "slots", patience());
    std::vector<std::byte> source(static_cast<std::size_t>(layout.size * 4096));
    Random random(3, static_cast<std::uint64_t>(rank));
    for (std::uint64_t step = 1; step <= 100; ++step) {
      for (std::int32_t peer = 0; peer < layout.size; ++peer) {
        std::byte* from = source.data() + peer * 4096;
        fill(from, 4096, rank, peer, static_cast<std::int64_t>(step));
        std::int64_t at = 0;
        for (std::int64_t piece = 0; at < 4096; ++piece) {
          const std::int64_t bytes =
              std::min<std::int64_t>(4096 - at, 1 + static_cast<std::int64_t>(random.below(1500)));
          if (random.below(2) == 0) {
            transport.put(buffer, peer, layout.payload(rank) + at, from + at, bytes);
          } else {
            transport.put_signal(buffer, peer, layout.payload(rank) + at, from + at, bytes,
                                 words + (rank * 8 + piece % 8) * kSignalStride, step);
          }
          at += bytes;
        }
        transport.signal(buffer, peer, layout.signal(rank), step);
      }
      for (std::int32_t step_peer = 0; step_peer < layout.size; ++step_peer) {
        transport.wait_signal(buffer, layout.signal(step_peer), step, patience(), {"dispatch", step_peer});
        require_filled(buffer.local + layout.payload(step_peer), 4096, step_peer, rank,
                       static_cast<std::int64_t>(step), "signal came before the payload");
      }
      transport.quiet();
      acknowledge_all(transport, buffer, layout, step);
    }
    transport.release(buffer);
  });
}

TEST_P(TransferConformance, PublishesDirectStoresWithASignal) {
  run_well([](Transport& transport) {
    if (!transport.capabilities().load_store) return;
    const std::int32_t rank = transport.world().rank;
    const Layout layout{transport.world().size, 3000};
    auto buffer = transport.allocate(layout.bytes(), "slots", patience());
    for (std::uint64_t step = 1; step <= 100; ++step) {
      for (std::int32_t peer = 0; peer < layout.size; ++peer) {
        fill(transport.peer_pointer(buffer, peer) + layout.payload(rank), 3000, rank, peer,
             static_cast<std::int64_t>(step));
        transport.signal(buffer, peer, layout.signal(rank), step);
      }
      for (std::int32_t peer = 0; peer < layout.size; ++peer) {
        transport.wait_signal(buffer, layout.signal(peer), step, patience(), {"dispatch", peer});
        require_filled(buffer.local + layout.payload(peer), 3000, peer, rank, static_cast<std::int64_t>(step),
                       "direct store");
      }
      acknowledge_all(transport, buffer, layout, step);
    }
    transport.release(buffer);
  });
}

TEST_P(TransferConformance, ComparesSignalsAcrossTheWrapAround) {
  run_well([](Transport& transport) {
    const std::int32_t rank = transport.world().rank;
    const std::int32_t size = transport.world().size;
    const std::int32_t next = (rank + 1) % size;
    const std::int32_t previous = (rank + size - 1) % size;
    auto buffer = transport.allocate(2 * kSignalStride, "words", patience());
    constexpr std::uint64_t kQuarter = std::uint64_t{1} << 62;
    const std::array<std::uint64_t, 9> values = {
        1, kQuarter, 2 * kQuarter, 3 * kQuarter, ~std::uint64_t{1}, ~std::uint64_t{0}, 0, 1, 2};
    std::uint64_t acknowledged = 0;
    for (const std::uint64_t value : values) {
      transport.signal(buffer, next, 0, value);
      const std::uint64_t seen = transport.wait_signal(buffer, 0, value, patience(), {"wrap", previous});
      require(seen == value,
              "wait_signal returned " + std::to_string(seen) + " for " + std::to_string(value));
      // A value already passed does not block, on whichever side of the wrap-around it lies.
      require(transport.wait_signal(buffer, 0, value - 1, patience(), {"wrap", previous}) == value,
              "no old value");
      transport.signal(buffer, previous, kSignalStride, ++acknowledged);
      transport.wait_signal(buffer, kSignalStride, acknowledged, patience(), {"acknowledge", next});
    }
    transport.release(buffer);
  });
}

TEST_P(TransferConformance, FenceKeepsPutsInOrder) {
  run_well([](Transport& transport) {
    const std::int32_t rank = transport.world().rank;
    const Layout layout{transport.world().size, 256};
    auto buffer = transport.allocate(layout.bytes(), "slots", patience());
    std::vector<std::byte> source(static_cast<std::size_t>(layout.size) * 512);
    for (std::uint64_t step = 1; step <= 100; ++step) {
      for (std::int32_t peer = 0; peer < layout.size; ++peer) {
        std::byte* old_bytes = source.data() + peer * 512;
        std::byte* new_bytes = old_bytes + 256;
        fill(old_bytes, 256, rank, peer, static_cast<std::int64_t>(step) + 1000);
        fill(new_bytes, 256, rank, peer, static_cast<std::int64_t>(step));
        transport.put(buffer, peer, layout.payload(rank), old_bytes, 256);
        transport.fence();
        transport.put(buffer, peer, layout.payload(rank), new_bytes, 256);
        transport.signal(buffer, peer, layout.signal(rank), step);
      }
      for (std::int32_t peer = 0; peer < layout.size; ++peer) {
        transport.wait_signal(buffer, layout.signal(peer), step, patience(), {"dispatch", peer});
        require_filled(buffer.local + layout.payload(peer), 256, peer, rank, static_cast<std::int64_t>(step),
                       "fence");
      }
      transport.quiet();
      acknowledge_all(transport, buffer, layout, step);
    }
    transport.release(buffer);
  });
}

TEST_P(TransferConformance, QuietFreesTheSource) {
  run_well([](Transport& transport) {
    const std::int32_t rank = transport.world().rank;
    const Layout layout{transport.world().size, 5000};
    auto buffer = transport.allocate(layout.bytes(), "slots", patience());
    std::vector<std::byte> source(5000);
    for (std::uint64_t step = 1; step <= 30; ++step) {
      for (std::int32_t peer = 0; peer < layout.size; ++peer) {
        fill(source.data(), 5000, rank, peer, static_cast<std::int64_t>(step));
        transport.put(buffer, peer, layout.payload(rank), source.data(), 5000);
        transport.quiet();
        std::memset(source.data(), 0xee, source.size());
      }
      for (std::int32_t peer = 0; peer < layout.size; ++peer)
        transport.signal(buffer, peer, layout.signal(rank), step);
      for (std::int32_t peer = 0; peer < layout.size; ++peer) {
        transport.wait_signal(buffer, layout.signal(peer), step, patience(), {"dispatch", peer});
        require_filled(buffer.local + layout.payload(peer), 5000, peer, rank, static_cast<std::int64_t>(step),
                       "quiet");
      }
      acknowledge_all(transport, buffer, layout, step);
    }
    transport.release(buffer);
  });
}

TEST_P(TransferConformance, RefusesTransfersOutsideTheBuffer) {
  run_well([](Transport& transport) {
    const std::int32_t size = transport.world().size;
    auto buffer = transport.allocate(1024, "small", patience());
    std::array<std::byte, 2048> source{};
    const auto refused = [&](const std::function<void()>& call) {
      require_contains(message_of(Errc::invalid_argument, call), "1024 bytes");
    };
    refused([&] { transport.put(buffer, 0, 1000, source.data(), 25); });
    refused([&] { transport.put(buffer, 0, -1, source.data(), 1); });
    refused([&] { transport.put(buffer, 0, 0, source.data(), -1); });
    refused([&] { transport.put(buffer, size, 0, source.data(), 1); });
    refused([&] { transport.put(buffer, -1, 0, source.data(), 1); });
    refused([&] { transport.put_signal(buffer, 0, 0, source.data(), 8, 1017, 1); });
    refused([&] { transport.put_signal(buffer, 0, 0, source.data(), 2048, 0, 1); });
    refused([&] { transport.signal(buffer, 0, 1024, 1); });
    refused([&] { transport.wait_signal(buffer, 1020, 1, patience(), {"dispatch", 0}); });
    // To the own part, since all ranks do this at the same time.
    transport.put(buffer, transport.world().rank, 0, source.data(), 1024);
    transport.quiet();
    transport.release(buffer);
  });
}

SHUNT_CONFORMANCE(TransferConformance);

}  // namespace
}  // namespace shunt::conformance
