#include "heap/plugin.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <map>
#include <mutex>

#include <shunt/core/child.h>
#include <shunt/core/error.h>
#include <shunt/core/plugin.h>

#include "cuda_ipc/cuda_api.h"
#include "heap/heap_transport.h"

#ifndef SHUNT_HAVE_NVSHMEM
#define SHUNT_HAVE_NVSHMEM 0
#endif
#ifndef SHUNT_HAVE_NCCL
#define SHUNT_HAVE_NCCL 0
#endif

namespace shunt::heap {
namespace {

constexpr auto kPatience = std::chrono::seconds(60);

/// A library that may be behind a plugin.
struct Library {
  const char* name;
  const char* says;  ///< As its makers write it
  const char* option;
  const char* package;
  bool built;
};
constexpr std::array<Library, 2> kLibraries{{
    {"nvshmem", "NVSHMEM", "SHUNT_NVSHMEM", "nvidia-nvshmem-cu13", SHUNT_HAVE_NVSHMEM != 0},
    {"nccl", "NCCL", "SHUNT_NCCL", "nvidia-nccl-cu13", SHUNT_HAVE_NCCL != 0},
}};

[[nodiscard]] const Library* find_library(const std::string& name) noexcept {
  for (const Library& library : kLibraries) {
    if (name == library.name) return &library;
  }
  return nullptr;
}

[[nodiscard]] const PluginTable& load(const Library& library) {
  const std::string name = fmt::format("shunt_{}", library.name);
  std::string searched;
  using Function = const PluginTable* (*)();
  auto* function = reinterpret_cast<Function>(load_plugin(name, kPluginFunction, searched));
  if (function == nullptr) {
    if (!library.built) {
      throw Error(Errc::unavailable, fmt::format("this build has no {} (Python wheel {}, CMake option {})",
                                                 library.says, library.package, library.option));
    }
    throw Error(
        Errc::unavailable,
        fmt::format("lib{}.so was built but is in none of: {} (SHUNT_PLUGIN_PATH can name its folder)", name,
                    searched));
  }
  const PluginTable* table = function();
  if (table == nullptr || std::strcmp(table->build, kPluginBuild) != 0) {
    throw Error(Errc::unavailable, fmt::format("lib{}.so belongs to another build ('{}', this one is '{}')",
                                               name, table == nullptr ? "" : table->build, kPluginBuild));
  }
  return *table;
}

/// What ranks tell each other before they enter.
struct Record {
  std::array<char, 240> reason{};
  std::array<std::byte, 16> device{};
  bool shared_by_mps = false;
};
constexpr std::size_t kMostIdBytes = 512;

/// What rank 0 hands out.
struct Invitation {
  std::array<char, 240> reason{};
  std::int64_t bytes = 0;
  std::array<std::byte, kMostIdBytes> id{};
};

template <std::size_t size>
void write_text(std::array<char, size>& to, const std::string& text) {
  const std::size_t bytes = std::min(text.size(), size - 1);
  std::memcpy(to.data(), text.data(), bytes);
  to[bytes] = '\0';
}

[[nodiscard]] std::chrono::nanoseconds left(Deadline deadline) {
  return std::max<std::chrono::nanoseconds>(deadline - Clock::now(), std::chrono::nanoseconds(0));
}

void check_records(const std::vector<Record>& records, const PluginTable& table, const std::string& name) {
  for (std::size_t rank = 0; rank < records.size(); ++rank) {
    if (records[rank].reason[0] == '\0') continue;
    throw Error(Errc::unavailable,
                fmt::format("transport {}: rank {}: {}", name, rank, records[rank].reason.data()));
  }
  for (std::size_t rank = 1; table.sharing != GpuSharing::allowed && rank < records.size(); ++rank) {
    const bool by_mps = table.sharing == GpuSharing::by_mps;
    for (std::size_t other = 0; other < rank; ++other) {
      if (records[rank].device != records[other].device) continue;
      if (by_mps && records[rank].shared_by_mps && records[other].shared_by_mps) continue;
      throw Error(
          Errc::unavailable,
          fmt::format("transport {}: ranks {} and {} have the same GPU, which {} {}; start at most as "
                      "many ranks as there are GPUs, or use cuda_ipc",
                      name, other, rank, table.description(),
                      by_mps ? "serves under CUDA MPS alone, which does not run here" : "refuses"));
    }
  }
}

}  // namespace

bool is_heap(const std::string& name) noexcept {
  return find_library(name) != nullptr;
}

const PluginTable& plugin(const std::string& name) {
  static std::mutex mutex;
  static std::map<std::string, const PluginTable*> loaded;
  const std::scoped_lock lock(mutex);
  const Library* library = find_library(name);
  if (library == nullptr) throw Error(Errc::internal, fmt::format("no plugin is called '{}'", name));
  const PluginTable*& table = loaded[name];
  if (table == nullptr) table = &load(*library);
  return *table;
}

namespace {

/// "1" and the description, or "0" and the reason.
[[nodiscard]] std::string ask_here(const std::string& name) {
  try {
    const PluginTable& table = plugin(name);
    const Preflight preflight = table.preflight(HeapOptions{});
    return preflight.reason.empty() ? "1" + table.description() : "0" + preflight.reason;
  } catch (const Error& error) {
    return std::string("0") + error.what();
  }
}

[[nodiscard]] const std::string& ask(const std::string& name) {
  static std::mutex mutex;
  static std::map<std::string, std::string> answers;
  const std::scoped_lock lock(mutex);
  std::string& answer = answers[name];
  if (!answer.empty()) return answer;
  if (cuda_ipc::cuda_has_begun()) {
    // A child of this process could not ask any more, and the preflight chooses a device.
    const cuda_ipc::KeptContext kept;
    answer = ask_here(name);
    return answer;
  }
  answer = ask_in_child([&] { return ask_here(name); }, kPatience)
               .value_or("0asking the CUDA driver crashes or takes longer than 60 s");
  return answer;
}

}  // namespace

std::string unavailable_reason_from_child(const std::string& name) {
  const std::string& answer = ask(name);
  return answer[0] == '1' ? "" : answer.substr(1);
}

std::string description_from_child(const std::string& name) {
  const std::string& answer = ask(name);
  return answer[0] == '1' ? answer.substr(1) : "";
}

std::unique_ptr<Transport> open_heap_transport(const PluginTable& table, const std::string& name,
                                               const RankPlaces& places, Transport& host, Deadline deadline,
                                               std::unique_ptr<Transport> owned) {
  const World& world = host.world();
  if (table.one_rank_per_process && !places.processes && world.size > 1) {
    throw Error(
        Errc::unavailable,
        fmt::format("transport {}: ranks are threads here, but the library has one rank in a process", name));
  }
  HeapOptions options{
      .rank = world.rank, .size = world.size, .local_rank = world.local_rank, .devices = places.devices};
  auto together = host.make_collectives(world.size * static_cast<std::int64_t>(sizeof(Invitation)), deadline);

  Record mine;
  const Preflight preflight = table.preflight(options);
  write_text(mine.reason, preflight.reason);
  mine.device = preflight.device;
  mine.shared_by_mps = preflight.shared_by_mps;
  std::vector<Record> records(static_cast<std::size_t>(world.size));
  together->allgather(&mine, sizeof mine, records.data(), left(deadline));
  check_records(records, table, name);

  Invitation invitation;
  if (world.rank == 0) {
    try {
      const std::vector<std::byte> id = table.unique_id();
      if (id.size() > kMostIdBytes)
        throw Error(Errc::internal,
                    fmt::format("an identifier of {} bytes, {} are possible", id.size(), kMostIdBytes));
      invitation.bytes = static_cast<std::int64_t>(id.size());
      std::memcpy(invitation.id.data(), id.data(), id.size());
    } catch (const Error& error) {
      write_text(invitation.reason, error.what());
    }
  }
  std::vector<Invitation> invitations(static_cast<std::size_t>(world.size));
  together->allgather(&invitation, sizeof invitation, invitations.data(), left(deadline));
  const Invitation& first = invitations.front();
  if (first.reason[0] != '\0')
    throw Error(Errc::unavailable, fmt::format("transport {}: rank 0: {}", name, first.reason.data()));
  options.unique_id.assign(first.id.begin(), first.id.begin() + first.bytes);
  together.reset();  // Before `owned`, also where opening fails
  std::unique_ptr<SymmetricHeap> heap(table.open(options));
  return std::make_unique<HeapTransport>(host, std::move(heap), deadline, std::move(owned),
                                         table.make_engine);
}

}  // namespace shunt::heap
