#include <fmt/format.h>
#include <sched.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <system_error>
#include <thread>

#include <shunt/core/error.h>

#include "local_run.h"

namespace shunt {

using shm::RankSlot;
using shm::RankState;

std::vector<int> allowed_cpus() {
  std::vector<int> cpus;
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) == 0) {
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
      if (CPU_ISSET(cpu, &set)) cpus.push_back(cpu);
    }
  }
  return cpus;
}

void run_on(const std::vector<int>& cpus) noexcept {
  cpu_set_t set;
  CPU_ZERO(&set);
  for (const int cpu : cpus) CPU_SET(cpu, &set);
  if (!cpus.empty()) static_cast<void>(sched_setaffinity(0, sizeof set, &set));
}

void pin_to(const std::vector<int>& cpus, std::int32_t rank, std::int32_t index) {
  if (cpus.empty()) throw Error(Errc::unavailable, "pin: the CPUs of this process could not be read");
  const int cpu = cpus[static_cast<std::size_t>(index) % cpus.size()];
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cpu, &set);
  if (sched_setaffinity(0, sizeof set, &set) != 0) {
    throw Error(Errc::unavailable,
                fmt::format("rank {}: pin to CPU {}: {}", rank, cpu, std::strerror(errno)));
  }
}

void run_rank(const LocalRun& launch, std::int32_t index) {
  RankSlot& slot = launch.segment.slot(index);
  const auto end = [&](RankState state) {
    shm::end_state(slot, state);
    if (RankSlot* node_slot = launch.node_slot(index)) shm::end_state(*node_slot, state);
  };
  const auto fail = [&](int status, const char* message) {
    const std::size_t bytes = std::min<std::size_t>(std::strlen(message), shm::kMessageBytes);
    std::memcpy(slot.message, message, bytes);
    slot.message_bytes = static_cast<std::int32_t>(bytes);
    slot.exit_status = status;
    end(RankState::failed);
  };
  try {
    // Counted over all nodes: emulated hosts share the CPUs of one machine.
    if (launch.pin) pin_to(launch.cpus, launch.first_rank + index, launch.first_rank + index);
    slot.exit_status = launch.run(index);
    end(RankState::finished);
  } catch (const Error& error) {
    slot.error = 1 + static_cast<std::int32_t>(error.code());
    fail(exit_status(error.code()), error.what());
  } catch (const std::exception& error) {
    fail(1, error.what());
  } catch (...) {
    fail(1, "the rank's function threw something that is not an exception");
  }
}

RankOutcome reported_outcome(const LocalRun& launch, std::int32_t index) {
  const RankSlot& slot = launch.segment.slot(index);
  return {.rank = launch.first_rank + index,
          .exit_status = slot.exit_status,
          .signal = 0,
          .code = slot.error == 0 ? Errc::internal : static_cast<Errc>(slot.error - 1),
          .message = std::string(slot.message, static_cast<std::size_t>(slot.message_bytes))};
}

std::vector<RankOutcome> run_threads(const LocalRun& launch) {
  std::vector<std::thread> threads;
  std::string failure;
  for (std::int32_t index = 0; index < launch.count(); ++index) {
    try {
      threads.emplace_back([&launch, index] { run_rank(launch, index); });
    } catch (const std::system_error& error) {
      failure =
          fmt::format("thread of rank {} could not be started: {}", launch.first_rank + index, error.what());
      // The ranks that run wait for this one; tell them.
      for (std::int32_t rest = index; rest < launch.count(); ++rest) {
        shm::end_state(launch.segment.slot(rest), RankState::lost);
        if (RankSlot* node_slot = launch.node_slot(rest)) shm::end_state(*node_slot, RankState::lost);
      }
      break;
    }
  }
  for (std::thread& thread : threads) thread.join();
  if (!failure.empty()) throw Error(Errc::unavailable, failure);
  std::vector<RankOutcome> outcomes;
  for (std::int32_t index = 0; index < launch.count(); ++index)
    outcomes.push_back(reported_outcome(launch, index));
  return outcomes;
}

}  // namespace shunt
