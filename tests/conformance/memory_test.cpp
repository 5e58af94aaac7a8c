#include <dirent.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <fstream>
#include <functional>
#include <string>
#include <thread>

#include "conformance/world_case.h"

namespace shunt::conformance {
namespace {

class MemoryConformance : public TransportConformance {};

[[nodiscard]] std::int64_t mappings_of_worlds() {
  std::ifstream maps("/proc/self/maps");
  std::int64_t count = 0;
  for (std::string line; std::getline(maps, line);) count += line.find("memfd:shunt") != std::string::npos;
  return count;
}

/// Of all memory files this process has open.
[[nodiscard]] std::int64_t blocks_of_worlds() {
  std::int64_t blocks = 0;
  DIR* folder = opendir("/proc/self/fd");
  require(folder != nullptr, "/proc/self/fd cannot be read");
  while (const dirent* entry = readdir(folder)) {
    const std::string path = std::string("/proc/self/fd/") + entry->d_name;
    char target[256] = {};
    struct stat status {};
    if (readlink(path.c_str(), target, sizeof target - 1) <= 0) continue;
    if (std::strstr(target, "memfd:shunt") == nullptr || stat(path.c_str(), &status) != 0) continue;
    blocks += status.st_blocks;
  }
  closedir(folder);
  return blocks;
}

TEST_P(MemoryConformance, AllocatesZeroedAndDistinctMemory) {
  run_well([](Transport& transport) {
    const std::int32_t rank = transport.world().rank;
    const std::int32_t size = transport.world().size;
    const auto collectives = transport.make_collectives(64, patience());
    std::vector<SymmetricBuffer> buffers;
    const std::vector<std::int64_t> sizes = {1, 100, 4096, 100'001, 5 << 20};
    for (const std::int64_t bytes : sizes) {
      buffers.push_back(transport.allocate(bytes, "test buffer", patience()));
      const SymmetricBuffer& buffer = buffers.back();
      require(buffer.bytes == bytes && buffer.local != nullptr && buffer.id >= 0, "buffer is not filled in");
      require(reinterpret_cast<std::uintptr_t>(buffer.local) % kSignalStride == 0, "buffer is not aligned");
      const std::vector<std::byte> content = bytes_at(buffer.local, bytes);
      require(std::all_of(content.begin(), content.end(), [](std::byte b) { return b == std::byte{0}; }),
              "memory is not zeroed");
      require(transport.peer_pointer(buffer, rank) == buffer.local, "own part is not at the own pointer");
    }
    for (std::size_t i = 0; i < buffers.size(); ++i) {
      fill(buffers[i].local, sizes[i], rank, 0, static_cast<std::int64_t>(i));
    }
    collectives->barrier(kPatience);
    for (std::int32_t peer = 0; peer < size; ++peer) {
      for (std::size_t i = 0; i < buffers.size(); ++i) {
        const std::byte* part = transport.peer_pointer(buffers[i], peer);
        // Without load_store the memory of one's own node may be reachable all the same.
        const World& world = transport.world();
        const bool one_node = world.num_nodes() > 1 && world.node_of(peer) == world.node;
        require((part != nullptr) == (peer == rank || one_node || transport.capabilities().load_store),
                "peer_pointer does not agree with capabilities");
        if (part != nullptr)
          require_filled(part, sizes[i], peer, 0, static_cast<std::int64_t>(i), "parts overlap");
      }
    }
    collectives->barrier(kPatience);
    for (SymmetricBuffer& buffer : buffers) {
      transport.release(buffer);
      require(buffer.local == nullptr && buffer.id == -1, "a released buffer still points somewhere");
    }
  });
}

TEST_P(MemoryConformance, AllocatesZeroBytes) {
  run_well([](Transport& transport) {
    auto empty = transport.allocate(0, "nothing", patience());
    require(empty.bytes == 0 && empty.id >= 0, "an empty buffer has no handle");
    auto other = transport.allocate(8, "something", patience());
    for (std::int32_t peer = 0; peer < transport.world().size; ++peer) {
      transport.put(empty, peer, 0, nullptr, 0);
    }
    transport.quiet();
    transport.release(empty);
    transport.release(other);
  });
}

TEST_P(MemoryConformance, GivesMemoryBackWhenAllHaveReleased) {
  run_well([](Transport& transport) {
    const auto collectives = transport.make_collectives(64, patience());
    auto words = transport.allocate(8, "words", patience());
    // A network may keep memory until it knows that every rank has released it.
    const auto comes_true = [&](const std::function<bool()>& condition) {
      const Deadline end = patience();
      while (!condition() && Clock::now() < end) {
        static_cast<void>(transport.poll_signal(words, 0));
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
      }
      return condition();
    };
    const auto cycle = [&] {
      auto first = transport.allocate(50'000, "first", patience());
      auto second = transport.allocate(9'000, "second", patience());
      require(bytes_at(second.local + 8'999, 1)[0] == std::byte{0}, "memory is not zeroed");
      set_bytes(second.local, 9'000, std::byte{0xff});
      transport.release(first);
      auto third = transport.allocate(9'000, "third", patience());
      require(bytes_at(third.local, 1)[0] == std::byte{0} && bytes_at(second.local, 1)[0] == std::byte{0xff},
              "buffers share memory");
      transport.release(second);
      transport.release(third);
    };
    cycle();
    collectives->barrier(kPatience);
    const std::int64_t mappings = mappings_of_worlds();
    const std::int64_t blocks = blocks_of_worlds();
    collectives->barrier(kPatience);
    for (int i = 0; i < 50; ++i) cycle();
    collectives->barrier(kPatience);
    require(comes_true([&] { return mappings_of_worlds() <= mappings; }), "mappings grow");
    require(comes_true([&] { return blocks_of_worlds() <= blocks; }), "memory grows");
    collectives->barrier(kPatience);
    transport.release(words);
  });
}

TEST_P(MemoryConformance, KeepsReleasedMemoryReadableForPeers) {
  run_well([](Transport& transport) {
    if (!transport.capabilities().load_store) return;
    const std::int32_t rank = transport.world().rank;
    const std::int32_t size = transport.world().size;
    const auto collectives = transport.make_collectives(64, patience());
    auto buffer = transport.allocate(10'000, "read late", patience());
    fill(buffer.local, buffer.bytes, rank, 0, 0);
    collectives->barrier(kPatience);
    if (rank != 0) transport.release(buffer);
    collectives->barrier(kPatience);
    for (std::int32_t peer = 0; rank == 0 && peer < size; ++peer) {
      require_filled(transport.peer_pointer(buffer, peer), 10'000, peer, 0, 0, "the part was taken away");
    }
    if (rank == 0) transport.release(buffer);
  });
}

TEST_P(MemoryConformance, RefusesMoreThanTheMemoryAvailable) {
  run_well([](Transport& transport) {
    const std::string rank = "rank " + std::to_string(transport.world().rank);
    for (const std::int64_t bytes : {std::int64_t{1} << 45, std::int64_t{1} << 62}) {
      const std::string message = message_of(Errc::out_of_memory, [&] {
        static_cast<void>(transport.allocate(bytes, "token buffer", patience()));
      });
      require_contains(message, rank + ": token buffer needs ");
      require_contains(message, " are available");
      require_contains(message, std::to_string(transport.world().size) + " ranks");
    }
    auto buffer = transport.allocate(4096, "small buffer", patience());
    require(bytes_at(buffer.local + 4095, 1)[0] == std::byte{0},
            "the transport is not usable after a refusal");
    transport.release(buffer);
  });
}

TEST_P(MemoryConformance, RefusesDifferentSizesOnEveryRank) {
  run_well([](Transport& transport) {
    const std::int32_t size = transport.world().size;
    if (size > 1) {
      const std::int64_t bytes = transport.world().rank == size - 1 ? 4097 : 4096;
      const std::string message = message_of(Errc::invalid_argument, [&] {
        static_cast<void>(transport.allocate(bytes, "token buffer", patience()));
      });
      require_contains(message, "token buffer: rank 0 asks for 4096 bytes");
      require_contains(message, "rank " + std::to_string(size - 1) + " for 4097");
    }
    require_contains(
        message_of(Errc::invalid_argument,
                   [&] { static_cast<void>(transport.allocate(-1, "token buffer", patience())); }),
        "-1 bytes");
    auto buffer = transport.allocate(4096, "small buffer", patience());
    transport.release(buffer);
  });
}

SHUNT_CONFORMANCE(MemoryConformance);

}  // namespace
}  // namespace shunt::conformance
