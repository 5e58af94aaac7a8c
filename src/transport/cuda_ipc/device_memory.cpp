// How the ranks of a DeviceTransport agree on memory and share it.
#include <sys/types.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <utility>

#include <fmt/format.h>

#include <shunt/core/host.h>

#include "cuda_ipc/device_transport.h"

namespace shunt::cuda_ipc {
namespace {

/// Of one rank in one exchange.
constexpr std::int64_t kRecordBytes = 1024;
constexpr std::int64_t kTextBytes = kRecordBytes - 16;

struct Verdict {
  std::int32_t code = -1;  ///< Errc, or -1: all is well
  std::int32_t bytes = 0;
  char text[kTextBytes] = {};
};

/// With the process id: forked children have the parent's number too.
[[nodiscard]] std::uint64_t process_number() {
  static const std::uint64_t number = [] {
    std::random_device random;
    return std::uint64_t{random()} << 32 | random();
  }();
  return number;
}

[[nodiscard]] std::int64_t align_up(std::int64_t bytes, std::int64_t to) {
  return (bytes + to - 1) / to * to;
}

/// Closes a file at the end of a scope.
struct File {
  int number = -1;
  explicit File(int of = -1) : number(of) {}
  ~File() {
    if (number >= 0) close(number);
  }
  File(const File&) = delete;
  File& operator=(const File&) = delete;
};

}  // namespace

/// One word for each rank that writes here, then a record of each in two parities: who has finished exchange e + 1 has
/// heard in it from every rank, which therefore has finished reading e, so e + 2 may overwrite that.
void DeviceTransport::open_records(Deadline deadline) {
  if (records_.id >= 0) control_.release(records_);
  records_ =
      control_.allocate(world_.size * (kSignalStride + 2 * kRecordBytes), "records of memory", deadline);
  exchanges_ = 0;
  records_stale_ = false;
}

/// Collective. Result: [R] every rank's record; that of an excluded one as it is made.
template <class Record>
std::vector<Record> DeviceTransport::exchange(const Record& mine, Deadline deadline) {
  static_assert(sizeof(Record) <= kRecordBytes);
  ++exchanges_;
  const auto at = [&](std::int32_t rank) {
    return world_.size * kSignalStride +
           (static_cast<std::int64_t>(exchanges_ % 2) * world_.size + rank) * kRecordBytes;
  };
  for (std::int32_t peer = 0; peer < world_.size; ++peer) {
    if (excluded(peer)) continue;
    control_.put_signal(records_, peer, at(world_.rank), &mine, sizeof mine, world_.rank * kSignalStride,
                        exchanges_);
  }
  std::vector<Record> all(static_cast<std::size_t>(world_.size));
  for (std::int32_t step = 0; step < world_.size; ++step) {
    const std::int32_t peer = (world_.rank + step) % world_.size;
    if (excluded(peer)) continue;
    control_.wait_signal(records_, peer * kSignalStride, exchanges_, deadline,
                         {.phase = "allocate", .peer = peer});
    std::memcpy(static_cast<void*>(&all[static_cast<std::size_t>(peer)]), records_.local + at(peer),
                sizeof mine);
  }
  control_.quiet();  // `mine` is read
  return all;
}

/// Collective. Where a rank brings an error, all throw that of the lowest such rank.
void DeviceTransport::agree(const std::optional<Error>& own, const char* what, Deadline deadline) {
  Verdict verdict;
  if (own.has_value()) {
    const std::string text = own->what();
    verdict.code = static_cast<std::int32_t>(own->code());
    verdict.bytes = static_cast<std::int32_t>(std::min<std::size_t>(text.size(), kTextBytes));
    std::memcpy(verdict.text, text.data(), static_cast<std::size_t>(verdict.bytes));
  }
  const std::vector<Verdict> all = exchange(verdict, deadline);
  for (std::int32_t rank = 0; rank < world_.size; ++rank) {
    const Verdict& one = all[static_cast<std::size_t>(rank)];
    if (excluded(rank) || one.code < 0) continue;
    throw Error(static_cast<Errc>(one.code),
                fmt::format("rank {}: {}: {}", world_.rank, what,
                            std::string_view(one.text, static_cast<std::size_t>(one.bytes))));
  }
}

/// The error that ends `step`, with this rank named, for agree().
std::optional<Error> DeviceTransport::attempt(const std::function<void()>& step) const {
  try {
    step();
  } catch (const Error& error) {
    return Error(error.code(), fmt::format("rank {} {}", world_.rank, error.what()));
  }
  return std::nullopt;
}

void DeviceTransport::meet_devices(Deadline deadline) {
  const DeviceFacts& facts = device_->device();
  Identity own{.device = facts.id,
               .process = process_number(),
               .pid = static_cast<std::int32_t>(getpid()),
               .ordinal = facts.ordinal,
               .shares_with_processes = facts.shares_with_processes};
  identities_ = exchange(own, deadline);
  std::optional<Error> failure = find_unreachable();
  bool alone = true;
  for (std::int32_t peer = 0; peer < world_.size; ++peer) alone = alone && same_process(peer);
  if (!alone && !failure.has_value()) {
    failure = attempt([&] {
      files_.emplace();
      own.address = files_->address();
    });
  }
  agree(failure, "GPU memory", deadline);
  if (alone) return;
  identities_ = exchange(own, deadline);
}

std::optional<Error> DeviceTransport::find_unreachable() const {
  const DeviceFacts& facts = device_->device();
  for (std::int32_t peer = 0; peer < world_.size; ++peer) {
    const Identity& other = identities_[static_cast<std::size_t>(peer)];
    if (!same_process(peer) && !facts.shares_with_processes) {
      return Error(
          Errc::unavailable,
          fmt::format("rank {} cannot share the memory of GPU {} ({}) with rank {}, another process: "
                      "the driver hands out no file descriptors for it (virtual GPUs and some "
                      "containers do not); ranks that are threads of one process can share it",
                      world_.rank, facts.ordinal, facts.name, peer));
    }
    if (device_->reaches(other.device).value_or(true)) continue;
    return Error(
        Errc::unavailable,
        fmt::format(
            "rank {} on GPU {} cannot load and store the memory of rank {} on GPU {}: there is no peer "
            "access between them (`nvidia-smi topo -p2p r` shows where there is); put the ranks on "
            "GPUs that reach each other (SHUNT_DEVICE, CUDA_VISIBLE_DEVICES) or use a transport that "
            "needs no load and store (nvshmem)",
            world_.rank, facts.ordinal, peer, other.ordinal));
  }
  return std::nullopt;
}

bool DeviceTransport::same_process(std::int32_t rank) const noexcept {
  const Identity& own = identities_[static_cast<std::size_t>(world_.rank)];
  const Identity& other = identities_[static_cast<std::size_t>(rank)];
  return own.process == other.process && own.pid == other.pid;
}

/// All ranks see the same proposals and decide alike. Result: bytes of the allocation of each rank.
std::int64_t DeviceTransport::check_proposals(const std::vector<Proposal>& proposals,
                                              const char* what) const {
  const std::int32_t lowest = lowest_rank();
  const std::int64_t bytes = proposals[static_cast<std::size_t>(lowest)].bytes;
  std::int64_t granule = 1;
  for (std::int32_t rank = 0; rank < world_.size; ++rank) {
    if (excluded(rank)) continue;
    const Proposal& proposal = proposals[static_cast<std::size_t>(rank)];
    granule = std::max(granule, proposal.granule);
    if (proposal.bytes == bytes) continue;
    throw Error(
        Errc::invalid_argument,
        fmt::format("rank {}: {}: rank {} asks for {} bytes of symmetric memory and rank {} for {}; all "
                    "ranks must ask for the same",
                    world_.rank, what, lowest, bytes, rank, proposal.bytes));
  }
  if (bytes < 0) {
    throw Error(Errc::invalid_argument,
                fmt::format("rank {}: {}: {} bytes of symmetric memory; 0 or more are allowed", world_.rank,
                            what, bytes));
  }
  constexpr std::int64_t kMost = std::numeric_limits<std::int64_t>::max();
  const bool absurd = bytes > kMost / 2;
  // Also for 0 bytes, so that every buffer has addresses.
  const std::int64_t each = absurd ? kMost : align_up(std::max<std::int64_t>(bytes, 1), granule);
  for (std::int32_t rank = 0; rank < world_.size; ++rank) {
    if (excluded(rank)) continue;
    const Identity& identity = identities_[static_cast<std::size_t>(rank)];
    // The least that any of its ranks has seen.
    std::int64_t free_bytes = kMost;
    std::int32_t sharing = 0;
    for (std::int32_t other = 0; other < world_.size; ++other) {
      if (excluded(other) || identities_[static_cast<std::size_t>(other)].device != identity.device) continue;
      ++sharing;
      free_bytes = std::min(free_bytes, proposals[static_cast<std::size_t>(other)].memory.free_bytes);
    }
    const std::int64_t together = each > kMost / sharing ? kMost : each * sharing;
    if (together <= free_bytes) continue;
    throw Error(
        Errc::out_of_memory,
        fmt::format(
            "rank {}: {} needs {} on GPU {} of rank {} ({} each for {} of {} ranks), but {} of its {} "
            "are available",
            world_.rank, what, format_bytes(together), identity.ordinal, rank, format_bytes(each), sharing,
            world_.size, format_bytes(free_bytes),
            format_bytes(proposals[static_cast<std::size_t>(rank)].memory.total_bytes)));
  }
  return each;
}

SymmetricBuffer DeviceTransport::allocate(std::int64_t bytes, const char* what, Deadline deadline) {
  if (records_stale_) open_records(deadline);
  Proposal own{.bytes = bytes, .granule = device_->granule()};
  std::optional<Error> failure = attempt([&] { own.memory = device_->memory(); });
  const std::int64_t each = [&] {
    const std::vector<Proposal> proposals = exchange(own, deadline);
    agree(failure, what, deadline);
    return check_proposals(proposals, what);
  }();

  std::vector<std::byte*> parts(static_cast<std::size_t>(world_.size));
  std::byte*& mine = parts[static_cast<std::size_t>(world_.rank)];
  failure = attempt([&] { mine = device_->allocate(each); });
  // On an error that this rank meets alone nothing stays behind either.
  try {
    agree(failure, what, deadline);
    share_parts(parts, each, what, deadline, failure);
    agree(failure, what, deadline);
  } catch (...) {
    release_parts(parts);
    throw;
  }
  auto free = std::find_if(buffers_.begin(), buffers_.end(), [](const Buffer& b) { return b.parts.empty(); });
  if (free == buffers_.end()) free = buffers_.emplace(buffers_.end());
  free->parts = parts;
  return {.local = mine, .bytes = bytes, .id = static_cast<std::int32_t>(free - buffers_.begin())};
}

/// Collective; an error of this rank's goes to `failure`.
void DeviceTransport::share_parts(std::vector<std::byte*>& parts, std::int64_t bytes, const char* what,
                                  Deadline deadline, std::optional<Error>& failure) {
  struct Address {
    std::uint64_t of = 0;
    std::uint64_t serial = 0;
  };
  std::byte* const mine = parts[static_cast<std::size_t>(world_.rank)];
  const std::vector<Address> addresses =
      exchange(Address{.of = reinterpret_cast<std::uintptr_t>(mine), .serial = serial_ + 1}, deadline);
  // After an exclusion they may differ: one survivor got further in an allocation than another.
  for (const Address& one : addresses) serial_ = std::max(serial_, one.serial);
  const auto with = [&](std::int32_t peer, const std::function<void()>& step) {
    if (failure.has_value()) return;
    failure = attempt([&] {
      try {
        step();
      } catch (const Error& error) {
        throw Error(error.code(), fmt::format("cannot share memory with rank {}: {}", peer, error.what()));
      }
    });
  };
  for (std::int32_t peer = 0; peer < world_.size; ++peer) {
    if (peer == world_.rank || excluded(peer) || !same_process(peer)) continue;
    with(peer, [&] {
      auto* theirs = reinterpret_cast<std::byte*>(addresses[static_cast<std::size_t>(peer)].of);
      parts[static_cast<std::size_t>(peer)] = device_->share(theirs);
    });
  }
  if (!files_.has_value()) return;
  File own;
  with(world_.rank, [&] { own.number = device_->export_file(mine); });
  // Else its peers would find that nothing came, and not why.
  agree(failure, what, deadline);
  // A receiver's socket holds few messages, so they go in rounds to the next ranks, and all meet after each.
  for (std::int32_t first = 1; first < world_.size && files_.has_value();
       first += FileExchange::kMostWaiting) {
    const std::int32_t end = std::min(first + FileExchange::kMostWaiting, world_.size);
    const auto for_each = [&](std::int32_t direction, const std::function<void(std::int32_t)>& call) {
      for (std::int32_t step = first; step < end; ++step) {
        const std::int32_t peer = (world_.rank + world_.size + direction * step) % world_.size;
        if (!excluded(peer) && !same_process(peer)) call(peer);
      }
    };
    with(world_.rank, [&] {
      for_each(1, [&](std::int32_t peer) {
        files_->send(identities_[static_cast<std::size_t>(peer)].address, world_.rank, serial_, own.number);
      });
    });
    static_cast<void>(exchange(Address{}, deadline));
    for_each(-1, [&](std::int32_t peer) {
      const File file(files_->take(peer, serial_));
      with(peer, [&] {
        if (file.number < 0) throw Error(Errc::unavailable, "its message did not come");
        parts[static_cast<std::size_t>(peer)] = device_->import_file(file.number, bytes);
      });
    });
  }
}

void DeviceTransport::release_parts(std::vector<std::byte*>& parts) noexcept {
  for (std::byte* part : parts) {
    if (part != nullptr) device_->release(part);
  }
  parts.clear();
}

void DeviceTransport::release(SymmetricBuffer& buffer) noexcept {
  if (holds(buffer, world_.rank)) release_parts(buffers_[static_cast<std::size_t>(buffer.id)].parts);
  buffer = {};
}

}  // namespace shunt::cuda_ipc
