#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include <shunt/core/random.h>
#include "alltoall/cuda/engine.h"
#include "alltoall/cuda/net.h"
#include "emulator/machine.h"
#include "phases.h"

/// AllToAll on GPUs without a GPU: its kernels on the emulator, its host part over the shared memory of threads.
namespace gpu {

/// What is under way between the ranks of one object whose net only puts. Bytes are read and written when they arrive, late
/// and in any order, and the signal of a put later still: all that a network promises.
class Postman {
 public:
  struct Put {
    std::int32_t from, to;
    std::int64_t to_offset, from_offset, bytes;
    std::int32_t signal;
    bool arrived = false;  ///< Its bytes; the signal has not
  };

  Postman(std::uint64_t seed, std::int32_t ranks, std::uint64_t slowness)
      : random_(seed, 99), slowness_(slowness), parts_(static_cast<std::size_t>(ranks)) {}
  /// New memory of a rank: nothing is under way to it. From any thread.
  void join(std::int32_t rank, std::byte* part, std::int64_t signals_at) {
    const std::lock_guard lock(joining_);
    under_way_.clear();
    parts_[static_cast<std::size_t>(rank)] = part;
    signals_at_ = signals_at;
  }
  void post(const Put& put) { under_way_.push_back(put); }
  /// Now and then takes one step of one of the puts.
  void work() {
    if (under_way_.empty() || random_.below(slowness_) != 0) return;
    const std::size_t which = random_.below(under_way_.size());
    Put& put = under_way_[which];
    std::byte* const to = parts_[static_cast<std::size_t>(put.to)];
    if (!put.arrived) {
      std::memcpy(to + put.to_offset, parts_[static_cast<std::size_t>(put.from)] + put.from_offset,
                  static_cast<std::size_t>(put.bytes));
      put.arrived = true;
      if (random_.below(2) == 0) return;
    }
    *word(put.to, put.signal) += 1;
    put = under_way_.back();
    under_way_.pop_back();
  }
  [[nodiscard]] std::uint64_t* word(std::int32_t rank, std::int32_t signal) const {
    return reinterpret_cast<std::uint64_t*>(parts_[static_cast<std::size_t>(rank)] + signals_at_ +
                                            signal * shunt::cuda::detail::kSignalWordStride);
  }

 private:
  shunt::Random random_;
  std::uint64_t slowness_;
  std::vector<std::byte*> parts_;
  std::int64_t signals_at_ = 0;
  std::vector<Put> under_way_;
  std::mutex joining_;
};

/// Launches kept to be made again, as a captured graph keeps them.
struct Recording {
  bool capturing = false;  ///< Launches are kept instead of queued
  std::vector<std::function<void()>> launches;
  void replay() const {
    for (const auto& launch : launches) launch();
  }
};

/// The engine of a rank of `machine`, which runs what is launched. `postman` null: over load and store, else over a net that
/// only puts.
[[nodiscard]] std::unique_ptr<shunt::cuda::detail::Engine> make_engine(shunt::emulator::Machine& machine,
                                                                       std::int32_t rank, Postman* postman,
                                                                       Recording* recording = nullptr);

}  // namespace gpu
