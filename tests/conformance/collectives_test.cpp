#include <algorithm>
#include <array>

#include <shunt/core/random.h>

#include "conformance/world_case.h"

namespace shunt::conformance {
namespace {

class CollectivesConformance : public TransportConformance {};

constexpr std::byte kUntouched{0};  // pattern() never gives it.

/// Sizes around the limits of the ways a piece may travel, many of them empty.
[[nodiscard]] std::int64_t random_size(Random& random, std::int64_t most) {
  const std::array<std::int64_t, 8> odd = {0, 1, 480, 481, 4096, 65'536, 65'537, most};
  switch (random.below(4)) {
    case 0:
      return 0;
    case 1:
      return std::min(odd[random.below(odd.size())], most);
    case 2:
      return static_cast<std::int64_t>(
          random.below(static_cast<std::uint64_t>(std::min<std::int64_t>(most, 600)) + 1));
    default:
      return static_cast<std::int64_t>(random.below(static_cast<std::uint64_t>(most) + 1));
  }
}

TEST_P(CollectivesConformance, BarrierHoldsUntilAllHaveEntered) {
  const SharedCounter entered;
  run_well([&](Transport& transport) {
    const std::int32_t size = transport.world().size;
    const auto collectives = transport.make_collectives(0, patience());
    for (std::int32_t step = 1; step <= 100; ++step) {
      entered.add();
      collectives->barrier(kPatience);
      require(entered.count() >= step * size, "a rank left the barrier before all had entered");
    }
  });
}

TEST_P(CollectivesConformance, AllgatherBringsEveryRanksBytes) {
  run_well([](Transport& transport) {
    const std::int32_t rank = transport.world().rank;
    const std::int32_t size = transport.world().size;
    constexpr std::int64_t kMost = 100'000;
    const auto collectives = transport.make_collectives(kMost, patience());
    Random common(5);
    std::vector<std::byte> send(kMost);
    std::vector<std::byte> receive(static_cast<std::size_t>(size * kMost + 1));
    for (std::int64_t step = 0; step < 200; ++step) {
      const std::int64_t bytes = step % 8 == 0 ? random_size(common, kMost) : random_size(common, 2000);
      std::fill(receive.begin(), receive.end(), kUntouched);
      // In place every third time.
      std::byte* source = step % 3 == 0 ? collectives->send_buffer() : send.data();
      fill(source, bytes, rank, 0, step);
      collectives->allgather(source, bytes, receive.data(), kPatience);
      fill(source, bytes, rank, 0, step + 5000);
      for (std::int32_t peer = 0; peer < size; ++peer) {
        require_filled(receive.data() + peer * bytes, bytes, peer, 0, step, "allgather");
      }
      require(receive[static_cast<std::size_t>(size * bytes)] == kUntouched, "allgather wrote too much");
    }
  });
}

TEST_P(CollectivesConformance, AlltoallBringsEveryRanksPiece) {
  run_well([](Transport& transport) {
    const std::int32_t rank = transport.world().rank;
    const std::int32_t size = transport.world().size;
    constexpr std::int64_t kMost = 40'000;
    const auto collectives = transport.make_collectives(size * kMost, patience());
    Random common(6);
    std::vector<std::byte> send(static_cast<std::size_t>(size * kMost));
    std::vector<std::byte> receive(static_cast<std::size_t>(size * kMost + 1));
    for (std::int64_t step = 0; step < 200; ++step) {
      const std::int64_t bytes = step % 8 == 0 ? random_size(common, kMost) : random_size(common, 1500);
      std::fill(receive.begin(), receive.end(), kUntouched);
      std::byte* source = step % 3 == 0 ? collectives->send_buffer() : send.data();
      for (std::int32_t peer = 0; peer < size; ++peer) fill(source + peer * bytes, bytes, rank, peer, step);
      collectives->alltoall(source, bytes, receive.data(), kPatience);
      for (std::int32_t peer = 0; peer < size; ++peer)
        fill(source + peer * bytes, bytes, rank, peer, step + 5000);
      for (std::int32_t peer = 0; peer < size; ++peer) {
        require_filled(receive.data() + peer * bytes, bytes, peer, rank, step, "alltoall");
      }
      require(receive[static_cast<std::size_t>(size * bytes)] == kUntouched, "alltoall wrote too much");
    }
  });
}

TEST_P(CollectivesConformance, AlltoallvBringsPiecesOfAnySize) {
  run_well([](Transport& transport) {
    const std::int32_t rank = transport.world().rank;
    const std::int32_t size = transport.world().size;
    const auto ranks = static_cast<std::size_t>(size);
    constexpr std::int64_t kMost = 200'000;
    constexpr std::int64_t kGap = 3;
    const auto collectives = transport.make_collectives(size * (kMost + kGap), patience());
    Random common(7);
    std::vector<std::byte> send(static_cast<std::size_t>(size * (kMost + kGap)));
    std::vector<std::byte> receive(send.size() + kGap);
    std::vector<std::int64_t> sizes(ranks * ranks);
    std::vector<std::int64_t> send_offsets(ranks), send_bytes(ranks), receive_offsets(ranks),
        receive_bytes(ranks);
    for (std::int64_t step = 0; step < 200; ++step) {
      for (std::int64_t& bytes : sizes) bytes = random_size(common, step % 20 == 0 ? kMost : 1500);
      std::byte* source = step % 3 == 0 ? collectives->send_buffer() : send.data();
      std::int64_t sent = kGap;
      std::int64_t received = kGap;
      for (std::size_t peer = 0; peer < ranks; ++peer) {
        send_offsets[peer] = sent;
        send_bytes[peer] = sizes[static_cast<std::size_t>(rank) * ranks + peer];
        sent += send_bytes[peer];
        receive_bytes[peer] = sizes[peer * ranks + static_cast<std::size_t>(rank)];
      }
      // Received in reverse rank order, with gaps.
      for (std::size_t peer = ranks; peer-- > 0;) {
        receive_offsets[peer] = received;
        received += receive_bytes[peer] + kGap;
      }
      for (std::size_t peer = 0; peer < ranks; ++peer) {
        fill(source + send_offsets[peer], send_bytes[peer], rank, static_cast<std::int32_t>(peer), step);
      }
      std::fill(receive.begin(), receive.end(), kUntouched);
      collectives->alltoallv(source, send_offsets, send_bytes, receive.data(), receive_offsets, receive_bytes,
                             kPatience);
      for (std::size_t peer = 0; peer < ranks; ++peer) {
        fill(source + send_offsets[peer], send_bytes[peer], rank, static_cast<std::int32_t>(peer),
             step + 5000);
      }
      for (std::size_t peer = 0; peer < ranks; ++peer) {
        const std::byte* piece = receive.data() + receive_offsets[peer];
        require_filled(piece, receive_bytes[peer], static_cast<std::int32_t>(peer), rank, step, "alltoallv");
        require(piece[-1] == kUntouched && piece[receive_bytes[peer]] == kUntouched,
                "alltoallv wrote into a gap");
      }
    }
  });
}

TEST_P(CollectivesConformance, KeepsTwoObjectsApart) {
  run_well([](Transport& transport) {
    const std::int32_t rank = transport.world().rank;
    const std::int32_t size = transport.world().size;
    const auto first = transport.make_collectives(8, patience());
    const auto second = transport.make_collectives(8, patience());
    std::vector<std::int64_t> receive(static_cast<std::size_t>(size));
    for (std::int64_t step = 0; step < 50; ++step) {
      Collectives& one = step % 2 == 0 ? *first : *second;
      Collectives& other = step % 2 == 0 ? *second : *first;
      const std::int64_t value = 1000 * step + rank;
      one.barrier(kPatience);
      other.allgather(&value, 8, receive.data(), kPatience);
      for (std::int32_t peer = 0; peer < size; ++peer) {
        require(receive[static_cast<std::size_t>(peer)] == 1000 * step + peer, "allgather of another step");
      }
    }
  });
}

TEST_P(CollectivesConformance, NamesRankAndSizesWherePiecesDiffer) {
  run_well([](Transport& transport) {
    const std::int32_t rank = transport.world().rank;
    const std::int32_t size = transport.world().size;
    const auto ranks = static_cast<std::size_t>(size);
    const auto collectives = transport.make_collectives(size * 100'000, patience());
    std::vector<std::byte> send(ranks * 100'000);
    std::vector<std::byte> receive(ranks * 100'000);
    for (const std::int64_t bytes : {100, 2000, 100'000}) {
      std::vector<std::int64_t> offsets(ranks), send_bytes(ranks, bytes), receive_bytes(ranks, bytes);
      for (std::size_t peer = 0; peer < ranks; ++peer)
        offsets[peer] = static_cast<std::int64_t>(peer) * 100'000;
      // Rank 0 expects less from the last rank than that sends; the others are right.
      const auto exchange = [&] {
        collectives->alltoallv(send.data(), offsets, send_bytes, receive.data(), offsets, receive_bytes,
                               kPatience);
      };
      if (rank == 0) {
        receive_bytes[ranks - 1] = bytes - 1;
        const std::string message = message_of(Errc::invalid_argument, exchange);
        require_contains(message, "rank 0: alltoallv: rank " + std::to_string(size - 1) + " sends " +
                                      std::to_string(bytes) + " bytes, but " + std::to_string(bytes - 1));
        receive_bytes[ranks - 1] = bytes;
      } else {
        exchange();
      }
      // The object is usable.
      for (std::size_t peer = 0; peer < ranks; ++peer) {
        fill(send.data() + offsets[peer], bytes, rank, static_cast<std::int32_t>(peer), bytes);
      }
      exchange();
      for (std::size_t peer = 0; peer < ranks; ++peer) {
        require_filled(receive.data() + offsets[peer], bytes, static_cast<std::int32_t>(peer), rank, bytes,
                       "alltoallv");
      }
    }
  });
}

TEST_P(CollectivesConformance, RefusesSizesBeyondItsMaximum) {
  run_well([](Transport& transport) {
    const std::int32_t size = transport.world().size;
    const auto ranks = static_cast<std::size_t>(size);
    const auto collectives = transport.make_collectives(size * 8, patience());
    std::vector<std::byte> send(ranks * 16);
    std::vector<std::byte> receive(ranks * ranks * 16);
    require_contains(
        message_of(Errc::invalid_argument,
                   [&] { collectives->allgather(send.data(), size * 8 + 1, receive.data(), kPatience); }),
        "0 to " + std::to_string(size * 8));
    require_contains(message_of(Errc::invalid_argument,
                                [&] { collectives->alltoall(send.data(), 9, receive.data(), kPatience); }),
                     "alltoall of 9 bytes per peer; 0 to 8");
    std::vector<std::int64_t> zero(ranks), bytes(ranks), offsets(ranks);
    offsets[0] = size * 8;
    bytes[0] = 1;
    const auto exchange = [&](std::span<const std::int64_t> a, std::span<const std::int64_t> b) {
      collectives->alltoallv(send.data(), a, b, receive.data(), zero, zero, kPatience);
    };
    require_contains(message_of(Errc::invalid_argument, [&] { exchange(offsets, bytes); }), "sends 1 bytes");
    bytes[0] = -1;
    require_contains(message_of(Errc::invalid_argument, [&] { exchange(zero, bytes); }), "sends -1 bytes");
    require_contains(
        message_of(Errc::invalid_argument, [&] { exchange(zero, std::span(zero).first(ranks - 1)); }),
        std::to_string(ranks - 1) + " send sizes");
    require_contains(message_of(Errc::invalid_argument,
                                [&] { static_cast<void>(transport.make_collectives(-1, patience())); }),
                     "-1 bytes");
    collectives->allgather(send.data(), 8, receive.data(), kPatience);
  });
}

SHUNT_CONFORMANCE(CollectivesConformance);

}  // namespace
}  // namespace shunt::conformance
