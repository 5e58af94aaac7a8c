#pragma once

#include <barrier>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

#include <shunt/transport/launch.h>

namespace gpu {

/// A part of a test: of every rank, at the same time, or of one thread for all of them.
struct Phase {
  std::function<void(std::int32_t rank, shunt::Transport&)> each;
  std::function<void()> alone;
  bool always = false;  ///< Also after a phase that failed
};

/// Runs the phases one after the other, with a thread and a transport for every rank.
/// Errors: throws the first that a phase threw; the later phases are left out.
inline void run_phases(std::int32_t ranks, const std::vector<Phase>& phases,
                       const std::string& transport_name = "shm") {
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
      shunt::run_ranks({.ranks = ranks, .mode = shunt::RankMode::threads, .transport = transport_name},
                       [&](shunt::Transport& transport) {
                         const std::int32_t rank = transport.world().rank;
                         for (const Phase& phase : phases) {
                           bool go_on = false;
                           {
                             const std::lock_guard lock(mutex);
                             go_on = !failed;
                           }
                           meet.arrive_and_wait();
                           if ((go_on || phase.always) && phase.each)
                             guarded([&] { phase.each(rank, transport); });
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
