#pragma once

#include <algorithm>
#include <barrier>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

#include <shunt/core/random.h>
#include <shunt/transport/launch.h>
#include "alltoall/cuda/engine.h"
#include "alltoall/cuda/net.h"
#include "emulator/machine.h"

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

/// The engine of a rank of `machine`, which runs what is launched. `postman` null: over load and store, else over a net that
/// only puts.
[[nodiscard]] std::unique_ptr<shunt::cuda::detail::Engine> make_engine(shunt::emulator::Machine& machine,
                                                                       std::int32_t rank, Postman* postman);

/// A part of a test: of every rank, at the same time, or of one thread for all of them.
struct Phase {
  std::function<void(std::int32_t rank, shunt::Transport&)> each;
  std::function<void()> alone;
  bool always = false;  ///< Also after a phase that failed
};

/// Runs the phases one after the other, with a thread and a transport for every rank.
/// Errors: throws the first that a phase threw; the later phases are left out.
inline void run_phases(std::int32_t ranks, const std::vector<Phase>& phases) {
  std::barrier<> meet(ranks);
  std::mutex mutex;
  std::exception_ptr failed;
  const auto guarded = [&](const std::function<void()>& body) {
    try {
      body();
    } catch (...) {
      const std::lock_guard lock(mutex);
      if (!failed) failed = std::current_exception();
    }
  };
  const auto outcomes =
      shunt::run_ranks({.ranks = ranks, .mode = shunt::RankMode::threads}, [&](shunt::Transport& transport) {
        const std::int32_t rank = transport.world().rank;
        for (const Phase& phase : phases) {
          bool go_on = false;
          {
            const std::lock_guard lock(mutex);
            go_on = !failed;
          }
          meet.arrive_and_wait();
          if ((go_on || phase.always) && phase.each) guarded([&] { phase.each(rank, transport); });
          if (go_on && phase.alone && rank == 0) guarded(phase.alone);
          meet.arrive_and_wait();
        }
        return 0;
      });
  if (failed) std::rethrow_exception(failed);
  for (const auto& outcome : outcomes)
    if (outcome.exit_status != 0) throw std::runtime_error(outcome.message);
}

}  // namespace gpu
