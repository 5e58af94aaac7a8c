#include "probe.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <limits>
#include <thread>

#include <fmt/format.h>

#include <shunt/core/error.h>
#include <shunt/core/host.h>
#include <shunt/transport/launch.h>

#include "channel.h"

namespace shunt::bench {
namespace {

constexpr int kBatches = 12;
constexpr int kPerBatch = 20;

std::atomic_ref<std::uint64_t> word(std::byte* at) {
  return std::atomic_ref<std::uint64_t>(*reinterpret_cast<std::uint64_t*>(at));
}

void relax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#endif
}

}  // namespace

RoundTripProbe::RoundTripProbe(Transport& transport, std::chrono::milliseconds deadline)
    : transport_(transport),
      deadline_(deadline),
      words_(transport.allocate(kSignalStride, "the placement probe", Clock::now() + deadline)) {}

void RoundTripProbe::wait_for(std::uint64_t value, std::int32_t peer) {
  const auto mine = word(words_.local);
  for (std::int64_t spins = 1; mine.load(std::memory_order_acquire) != value; ++spins) {
    relax();
    // With both ranks on one core the peer runs only when this one gives way.
    if (spins % 4096 == 0) sched_yield();
    if (spins == 1'000'000)
      static_cast<void>(transport_.wait_signal(words_, 0, value, Clock::now() + deadline_,
                                               WaitSite{.phase = "placement probe", .peer = peer}));
  }
}

double RoundTripProbe::measure() {
  const World& world = transport_.world();
  if (world.size < 2 || world.rank > 1) return -1;
  const std::int32_t peer = 1 - world.rank;
  std::byte* const pointer = transport_.peer_pointer(words_, peer);
  if (pointer == nullptr) return -1;
  const auto theirs = word(pointer);
  double best = std::numeric_limits<double>::max();
  for (int batch = 0; batch < kBatches; ++batch) {
    const auto start = Clock::now();
    for (int i = 0; i < kPerBatch; ++i) {
      ++last_;
      if (world.rank == 0) {
        theirs.store(last_, std::memory_order_release);
        wait_for(last_, peer);
      } else {
        wait_for(last_, peer);
        theirs.store(last_, std::memory_order_release);
      }
    }
    best = std::min(best, std::chrono::duration<double, std::nano>(Clock::now() - start).count() / kPerBatch);
  }
  return world.rank == 0 ? best : -1;
}

std::vector<double> RoundTripProbe::survey(int count, std::chrono::microseconds pause) {
  std::vector<double> found;
  for (int i = 0; i < count; ++i) {
    if (const double ns = measure(); ns >= 0) found.push_back(ns);
    std::this_thread::sleep_for(pause);
  }
  return found;
}

std::vector<double> survey_round_trips(int count, std::chrono::microseconds pause) {
  if (available_cores() < 2) return {};
  const Channel channel;
  const auto body = [&](Transport& transport) {
    RoundTripProbe probe(transport, std::chrono::seconds(10));
    const std::vector<double> found = probe.survey(count, pause);
    if (transport.world().rank == 0)
      channel.write(std::string(reinterpret_cast<const char*>(found.data()), found.size() * sizeof(double)));
    return 0;
  };
  const auto outcomes = run_ranks(LaunchOptions{.ranks = 2, .pin = true}, body);
  if (combined_status(outcomes) != 0) return {};
  const std::string bytes = channel.read();
  std::vector<double> found(bytes.size() / sizeof(double));
  std::memcpy(found.data(), bytes.data(), found.size() * sizeof(double));
  return found;
}

}  // namespace shunt::bench
