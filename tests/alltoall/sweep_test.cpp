// A randomised sweep of AllToAll against the reference of oracle.h: thousands of configurations, in one world
// for each number of ranks. Every row, count and combined element of every rank is compared, by bits; one
// case in eight is repeated under random delays and must give the same bits.
//
// Environment:
//   SHUNT_SWEEP_CASES  number of configurations, default 2048
//   SHUNT_SWEEP_SEED   first seed / 1000000, default 1
//   SHUNT_SWEEP_CASE   run this one case only, as a failure's message says
//   SHUNT_SWEEP_MODE   "processes" (default) or "threads", for ThreadSanitizer
// To run on another transport, and as part of a job of several hosts (tests/network/sweep):
//   SHUNT_SWEEP_TRANSPORT  join the job that the environment describes (MASTER_ADDR …, RANK, mpirun, srun) on this
//                          transport; where it describes none, start the ranks here
//   SHUNT_SWEEP_RANKS      cases of this number of ranks only; a job's number is the job's
//   SHUNT_SWEEP_NODES      nodes that ranks started here are split among, where that divides them; else each is one
//   SHUNT_SWEEP_DELAYED    "all": every case is repeated under random delays; "none": none is
//   SHUNT_SWEEP_HASHES     path: rank r writes PATH.r, one line per case with a hash of all its results
#include <sys/mman.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iostream>
#include <map>
#include <memory>
#include <optional>
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

/// "all", "none", or empty: as each case says.
std::string delays() {
  const char* text = std::getenv("SHUNT_SWEEP_DELAYED");
  const std::string value = text == nullptr ? "" : text;
  if (value.empty() || value == "all" || value == "none") return value;
  throw shunt::Error(shunt::Errc::invalid_argument,
                     "SHUNT_SWEEP_DELAYED is '" + value + "'; all and none are allowed");
}

/// The job to run in, or null: each number of ranks is a world of its own on this machine's shared memory.
std::unique_ptr<shunt::LaunchSession> join_job() {
  if (std::getenv("SHUNT_SWEEP_TRANSPORT") == nullptr) return nullptr;
  return std::make_unique<shunt::LaunchSession>(
      shunt::detect_launch(0, [](const char* name) -> const char* { return std::getenv(name); }));
}

/// FNV-1a.
std::uint64_t hash_of(const std::vector<std::byte>& data) {
  std::uint64_t hash = 0xcbf29ce484222325U;
  for (const std::byte one : data) hash = (hash ^ static_cast<std::uint64_t>(one)) * 0x100000001b3U;
  return hash;
}

/// A case as it is run here: a job has its own nodes, and says itself which cases are delayed.
sweep::SweepCase case_here(std::uint64_t seed, bool in_job) {
  sweep::SweepCase what = sweep::make_case(seed);
  if (const std::string wanted = delays(); !wanted.empty()) what.delayed = wanted == "all";
  if (in_job) {
    what.nodes = 1;
    what.alone = false;
  }
  return what;
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

/// Returns the hash of the case's results.
std::uint64_t run_one(shunt::Transport& transport, const sweep::SweepCase& what,
                      const SharedProgress& progress) {
  const std::uint64_t seed = what.seed;
  const auto rank = static_cast<std::size_t>(transport.world().rank);
  progress->current[rank] = seed;
  const char* how = "";
  std::vector<std::byte> plain;
  try {
    plain = sweep::run_case(transport, what);
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
  return hash_of(plain);
}

/// Runs the cases of one number of ranks in one world.
void run_world(const std::vector<std::uint64_t>& seeds, std::int32_t ranks, shunt::LaunchSession* job) {
  const SharedProgress progress;
  const auto body = [&](shunt::Transport& transport) {
    std::optional<std::ofstream> hashes;
    if (const char* path = std::getenv("SHUNT_SWEEP_HASHES"); path != nullptr)
      hashes.emplace(std::string(path) + "." + std::to_string(transport.world().rank), std::ios::app);
    for (const std::uint64_t seed : seeds) {
      const std::uint64_t hash = run_one(transport, case_here(seed, job != nullptr), progress);
      if (hashes &&
          !(*hashes << ranks << " ranks, case " << seed << ": " << std::hex << hash << std::dec << std::endl))
        throw shunt::Error(shunt::Errc::io, "the file of SHUNT_SWEEP_HASHES cannot be written");
    }
    return 0;
  };
  shunt::LaunchOptions options{.ranks = ranks, .mode = mode()};
  if (job != nullptr) {
    options.transport = std::getenv("SHUNT_SWEEP_TRANSPORT");
    const auto nodes = static_cast<std::int32_t>(number_from("SHUNT_SWEEP_NODES", 1));
    options.nodes = nodes > 0 && ranks % nodes == 0 ? nodes : ranks;
  }
  const auto outcomes = job == nullptr ? shunt::run_ranks(options, body) : job->run(options, body);
  ASSERT_FALSE(outcomes.empty());
  if (job == nullptr || job->way() == shunt::LaunchWay::local) {
    ASSERT_EQ(outcomes.size(), static_cast<std::size_t>(ranks));
  }
  std::uint64_t to_delay = 0;
  std::uint64_t to_part = 0;
  for (const std::uint64_t seed : seeds) {
    const sweep::SweepCase what = case_here(seed, job != nullptr);
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
  const auto job = join_job();
  const std::uint64_t single = number_from("SHUNT_SWEEP_CASE", 0);
  const std::uint64_t count = single != 0 ? 1 : number_from("SHUNT_SWEEP_CASES", 2048);
  const std::uint64_t first = single != 0 ? single : number_from("SHUNT_SWEEP_SEED", 1) * 1'000'000;
  std::uint64_t only = number_from("SHUNT_SWEEP_RANKS", 0);
  if (job != nullptr && job->world_size() != 0) only = static_cast<std::uint64_t>(job->world_size());
  std::map<std::int32_t, std::vector<std::uint64_t>> by_ranks;
  std::uint64_t ran = 0;
  for (std::uint64_t seed = first; ran < count && seed < first + 1'000'000; ++seed) {
    const std::int32_t ranks = sweep::ranks_of(seed);
    if (only != 0 && static_cast<std::uint64_t>(ranks) != only) continue;
    by_ranks[ranks].push_back(seed);
    ++ran;
  }
  ASSERT_EQ(ran, count) << "cases have 1 to " << kMaxRanks << " ranks; asked for were " << only;
  for (const auto& [ranks, of_world] : by_ranks) run_world(of_world, ranks, job.get());
  if (HasFailure() || (job != nullptr && !job->leads())) return;

  std::map<std::string, std::uint64_t> coverage;
  for (const auto& [ranks, of_world] : by_ranks)
    for (const std::uint64_t seed : of_world)
      for (const auto& feature : sweep::features(case_here(seed, job != nullptr))) ++coverage[feature];
  std::cout << count << " configurations ran and agree with the reference, of them:\n";
  for (const auto& [feature, cases] : coverage) std::cout << "  " << cases << "\t" << feature << "\n";
  if (count >= 2000 && only == 0) {
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
