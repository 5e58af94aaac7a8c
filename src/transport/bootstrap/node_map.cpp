#include "bootstrap/node_map.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sched.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <random>
#include <string>

#include <shunt/core/error.h>
#include <shunt/core/host.h>

namespace shunt {
namespace {

struct Place {
  std::uint64_t node = 0;     ///< Equal on ranks of a node
  std::uint64_t machine = 0;  ///< Equal on ranks of one kernel
  cpu_set_t cpus{};
};

struct Offer {
  std::uint64_t cookie = 0;
  std::int32_t pid = 0;
  std::int32_t file = -1;
};

[[nodiscard]] std::string host_name() {
  char name[256] = {};
  return gethostname(name, sizeof name - 1) == 0 ? name : "";
}

[[nodiscard]] Place this_place(const std::function<const char*(const char*)>& get) {
  const char* given = get("SHUNT_NODE");
  std::string key = given != nullptr && *given != '\0' ? given : host_name();
  const std::string machine = boot_id();
  struct stat processes {};
  const bool known = stat("/proc/self/ns/pid", &processes) == 0;
  // Processes that cannot see each other's numbers cannot open each other's memory.
  key += fmt::format("\n{}\n{}", machine, known ? processes.st_ino : 0);
  Place place{.node = std::hash<std::string>{}(key), .machine = std::hash<std::string>{}(machine)};
  CPU_ZERO(&place.cpus);
  sched_getaffinity(0, sizeof place.cpus, &place.cpus);
  return place;
}

[[nodiscard]] std::unique_ptr<shm::Segment> open_segment(const Offer& offer, std::int32_t ranks) {
  const std::string path = fmt::format("/proc/{}/fd/{}", offer.pid, offer.file);
  const int file = open(path.c_str(), O_RDWR | O_CLOEXEC);
  if (file < 0) return nullptr;
  try {
    return std::make_unique<shm::Segment>(ranks, file, offer.cookie);
  } catch (const Error&) {
    return nullptr;
  }
}

}  // namespace

NodeMap map_nodes(Bootstrap& bootstrap, const std::function<const char*(const char*)>& get,
                  Deadline deadline) {
  const std::int32_t rank = bootstrap.rank();
  const auto size = static_cast<std::size_t>(bootstrap.size());
  const auto self = static_cast<std::size_t>(rank);
  const Place place = this_place(get);
  std::vector<Place> places(size);
  bootstrap.allgather(&place, sizeof place, places.data(), deadline, "start");

  // The lowest rank of each node.
  const auto first_of = [&](std::size_t of) {
    std::size_t first = 0;
    while (places[first].node != places[of].node) ++first;
    return first;
  };
  std::int32_t local_size = 0;
  std::int32_t local_rank = 0;
  std::int32_t on_machine = 0;
  NodeMap map;
  cpu_set_t together;
  CPU_ZERO(&together);
  for (std::size_t one = 0; one < size; ++one) {
    if (places[one].machine == place.machine) {
      if (one < self) ++map.machine_index;
      ++on_machine;
      CPU_OR(&together, &together, &places[one].cpus);
    }
    if (places[one].node != place.node) continue;
    if (one < self) ++local_rank;
    ++local_size;
  }

  Offer offer{.pid = getpid()};
  if (first_of(self) == self) {
    std::random_device random;
    offer.cookie = std::uint64_t{random()} << 32 | random();
    map.segment = std::make_unique<shm::Segment>(local_size);
    map.segment->set_cookie(offer.cookie);
    offer.file = map.segment->file();
  }
  std::vector<Offer> offers(size);
  bootstrap.allgather(&offer, sizeof offer, offers.data(), deadline, "start");
  if (map.segment == nullptr) map.segment = open_segment(offers[first_of(self)], local_size);
  const std::uint8_t opened = map.segment != nullptr ? 1 : 0;
  std::vector<std::uint8_t> all_opened(size);
  bootstrap.allgather(&opened, sizeof opened, all_opened.data(), deadline, "start");

  // The memory has a slot for every rank that was meant to share it, so it is shared by all of them or by none.
  const auto shares = [&](std::size_t of) {
    for (std::size_t one = 0; one < size; ++one) {
      if (places[one].node == places[of].node && all_opened[one] == 0) return false;
    }
    return true;
  };
  if (!shares(self)) {
    local_rank = 0;
    map.segment = std::make_unique<shm::Segment>(1);
  }
  std::vector<std::int32_t> nodes(size);
  std::int32_t next = 0;
  for (std::size_t one = 0; one < size; ++one) {
    const std::size_t first = first_of(one);
    nodes[one] = first == one || !shares(one) ? next++ : nodes[first];
  }
  map.world = {.rank = rank,
               .size = bootstrap.size(),
               .local_rank = local_rank,
               .node = nodes[self],
               .nodes = next > 1 ? nodes : std::vector<std::int32_t>{}};
  map.oversubscribed = CPU_COUNT(&together) < on_machine;
  std::atomic_ref(map.segment->slot(local_rank).pid).store(getpid(), std::memory_order_release);
  return map;
}

}  // namespace shunt
