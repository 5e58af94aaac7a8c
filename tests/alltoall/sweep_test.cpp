// A randomised sweep of AllToAll against the reference of oracle.h: thousands of configurations, in one world
// for each number of ranks. Every row, count and combined element of every rank is compared, by bits; one
// case in eight is repeated under random delays and must give the same bits.
//
// Environment:
//   SHUNT_SWEEP_CASES  number of configurations, default 2048
//   SHUNT_SWEEP_SEED   first seed / 1000000, default 1
//   SHUNT_SWEEP_CASE   run this one case only, as a failure's message says
//   SHUNT_SWEEP_MODE   "processes" (default) or "threads", for ThreadSanitizer
#include <sys/mman.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <map>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <alltoall/sweep_case.h>
#include <alltoall/sweep_run.h>
#include <shunt/core/error.h>
#include <shunt/transport/launch.h>
#include <shunt/transport/wrap.h>

namespace {

constexpr std::size_t kMaxRanks = 8;

/// Number in an environment variable; anything else in it is an error.
std::uint64_t number_from(const char* name, std::uint64_t otherwise) {
  const char* text = std::getenv(name);
  if (text == nullptr) return otherwise;
  char* end = nullptr;
  const std::uint64_t value = std::strtoull(text, &end, 10);
  if (*text == '\0' || *end != '\0')
    throw shunt::Error(shunt::Errc::invalid_argument,
                       std::string(name) + " is '" + text + "'; a non-negative number is allowed");
  return value;
}

shunt::RankMode mode() {
  const char* text = std::getenv("SHUNT_SWEEP_MODE");
  if (text == nullptr || std::strcmp(text, "processes") == 0) return shunt::RankMode::processes;
  if (std::strcmp(text, "threads") == 0) return shunt::RankMode::threads;
  throw shunt::Error(shunt::Errc::invalid_argument,
                     std::string("SHUNT_SWEEP_MODE is '") + text + "'; processes and threads are allowed");
}

/// What the ranks have done, in memory they share with the parent: a rank that crashes says nothing else.
struct Progress {
  std::atomic<std::uint64_t> current[kMaxRanks];
  std::atomic<std::uint64_t> finished[kMaxRanks];
  std::atomic<std::uint64_t> delayed[kMaxRanks];
  std::atomic<std::uint64_t> apart[kMaxRanks];
};

class SharedProgress {
 public:
  SharedProgress()
      : progress_(static_cast<Progress*>(
            mmap(nullptr, sizeof(Progress), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0))) {}
  ~SharedProgress() { munmap(progress_, sizeof(Progress)); }
  SharedProgress(const SharedProgress&) = delete;
  SharedProgress& operator=(const SharedProgress&) = delete;
  Progress* operator->() const { return progress_; }

 private:
  Progress* progress_;
};

void run_one(shunt::Transport& transport, std::uint64_t seed, const SharedProgress& progress) {
  const auto rank = static_cast<std::size_t>(transport.world().rank);
  progress->current[rank] = seed;
  const sweep::SweepCase what = sweep::make_case(seed);
  const char* how = "";
  try {
    const auto plain = sweep::run_case(transport, what);
    if (what.delayed) {
      how = " under random delays";
      const auto delayed = shunt::make_delayed(
          transport, {.seed = seed ^ (rank << 32), .max_delay = std::chrono::microseconds(50)});
      if (sweep::run_case(*delayed, what) != plain)
        throw shunt::Error(shunt::Errc::check_failed, "the bits differ from those of the run without delays");
      ++progress->delayed[rank];
    }
    if (what.nodes > 1 || what.alone) {
      how = " across nodes";
      const auto apart = shunt::make_delayed(transport, {.seed = seed ^ (rank << 32),
                                                         .max_delay = std::chrono::microseconds(50),
                                                         .probability = what.delayed ? 0.5 : 0.0,
                                                         .hide_load_store = what.alone,
                                                         .hide_other_nodes = true,
                                                         .nodes = what.nodes});
      if (sweep::run_case(*apart, what) != plain)
        throw shunt::Error(shunt::Errc::check_failed, "the bits differ from those of the run on one node");
      ++progress->apart[rank];
    }
  } catch (const shunt::Error& error) {
    throw shunt::Error(error.code(), "case " + std::to_string(seed) + how + ": " + error.what() +
                                         "; rerun with SHUNT_SWEEP_CASE=" + std::to_string(seed));
  }
  ++progress->finished[rank];
}

/// Runs the cases of one number of ranks in one world.
void run_world(const std::vector<std::uint64_t>& seeds, std::int32_t ranks) {
  const SharedProgress progress;
  const auto outcomes = shunt::run_ranks({.ranks = ranks, .mode = mode()}, [&](shunt::Transport& transport) {
    for (const std::uint64_t seed : seeds) run_one(transport, seed, progress);
    return 0;
  });
  ASSERT_EQ(outcomes.size(), static_cast<std::size_t>(ranks));
  std::uint64_t to_delay = 0;
  std::uint64_t to_part = 0;
  for (const std::uint64_t seed : seeds) {
    const sweep::SweepCase what = sweep::make_case(seed);
    to_delay += what.delayed ? 1 : 0;
    to_part += what.nodes > 1 || what.alone ? 1 : 0;
  }
  for (const auto& outcome : outcomes) {
    const auto rank = static_cast<std::size_t>(outcome.rank);
    EXPECT_EQ(outcome.exit_status, 0) << "rank " << rank << " of " << ranks << " in case "
                                      << progress->current[rank] << ": " << outcome.message;
    EXPECT_EQ(progress->finished[rank], seeds.size()) << "rank " << rank << " of " << ranks;
    EXPECT_EQ(progress->delayed[rank], to_delay) << "rank " << rank << " of " << ranks;
    EXPECT_EQ(progress->apart[rank], to_part) << "rank " << rank << " of " << ranks;
  }
}

TEST(AllToAllSweepTest, EqualsReferenceByBits) {
  std::vector<std::uint64_t> seeds;
  const std::uint64_t single = number_from("SHUNT_SWEEP_CASE", 0);
  const std::uint64_t count = single != 0 ? 1 : number_from("SHUNT_SWEEP_CASES", 2048);
  const std::uint64_t first = single != 0 ? single : number_from("SHUNT_SWEEP_SEED", 1) * 1'000'000;
  std::map<std::int32_t, std::vector<std::uint64_t>> by_ranks;
  for (std::uint64_t seed = first; seed < first + count; ++seed)
    by_ranks[sweep::ranks_of(seed)].push_back(seed);
  for (const auto& [ranks, of_world] : by_ranks) run_world(of_world, ranks);
  if (HasFailure()) return;

  std::map<std::string, std::uint64_t> coverage;
  for (std::uint64_t seed = first; seed < first + count; ++seed)
    for (const auto& feature : sweep::features(sweep::make_case(seed))) ++coverage[feature];
  std::cout << count << " configurations ran and agree with the reference, of them:\n";
  for (const auto& [feature, cases] : coverage) std::cout << "  " << cases << "\t" << feature << "\n";
  if (count >= 2000) {
    EXPECT_GE(coverage["repeated under random delays"], 200U);
    EXPECT_GE(coverage["repeated across nodes"], 1000U);
    EXPECT_GE(coverage["repeated across nodes under random delays"], 100U);
    for (const char* feature : {"path=flat",
                                "path=hierarchical",
                                "check_messages",
                                "a group without tokens",
                                "a step that overflows",
                                "a step with unequal replicas",
                                "accumulate",
                                "all ids masked",
                                "dp_size = R > 1",
                                "E % R != 0",
                                "E < R",
                                "H = 1",
                                "H odd > 1",
                                "K = E > 1",
                                "K > experts of some rank",
                                "live_tokens",
                                "masked ids",
                                "max_tokens = 0",
                                "movement=push",
                                "objects in flight=2",
                                "short last scale block",
                                "uneven tokens",
                                "delivery=view",
                                "layout=padded"})
      EXPECT_GT(coverage[feature], 0U) << "no case has: " << feature;
  }
}

}  // namespace
