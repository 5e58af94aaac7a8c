#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include <shunt/transport/launch.h>

#include "shm/segment.h"

namespace shunt {

/// The ranks that this process starts, and where they report how they end.
struct LocalRun {
  bool pin = false;
  RankMode mode = RankMode::processes;
  std::int32_t first_rank = 0;  ///< Of the ranks started here
  bool part_of_world = false;   ///< Other processes start ranks of the same world
  shm::Segment& segment;        ///< A slot for each rank started here
  /// Where these ranks are on several nodes: their segments, each with an equal share of the ranks in order.
  const std::vector<std::unique_ptr<shm::Segment>>& nodes;
  std::vector<int> cpus;  ///< That this process may run on; before any pinning
  /// Is the rank with this index among those started here, in its own process or thread.
  std::function<int(std::int32_t index)> run;

  [[nodiscard]] std::int32_t count() const noexcept { return segment.ranks(); }
  [[nodiscard]] bool oversubscribed() const noexcept {
    return cpus.size() < static_cast<std::size_t>(count());
  }
  /// Slot of a rank in the segment of its node, or null where there is one segment.
  [[nodiscard]] shm::RankSlot* node_slot(std::int32_t index) const noexcept {
    if (nodes.empty()) return nullptr;
    const std::int32_t share = nodes.front()->ranks();
    return &nodes[static_cast<std::size_t>(index / share)]->slot(index % share);
  }
};

[[nodiscard]] std::vector<int> allowed_cpus();
/// Pins this thread to the CPU for the rank that is number `index` here.
void pin_to(const std::vector<int>& cpus, std::int32_t rank, std::int32_t index);
/// This thread may run on these CPUs again.
void run_on(const std::vector<int>& cpus) noexcept;

/// Runs one rank in this process or thread and leaves its end in its slots.
void run_rank(const LocalRun& launch, std::int32_t index);
/// What a rank has left there.
[[nodiscard]] RankOutcome reported_outcome(const LocalRun& launch, std::int32_t index);

/// Starts the ranks and returns when all have ended.
std::vector<RankOutcome> run_threads(const LocalRun& launch);
std::vector<RankOutcome> run_children(const LocalRun& launch);

}  // namespace shunt
