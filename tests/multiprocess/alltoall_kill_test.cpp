// A rank dies in the middle of a step: 50 runs, each kills another rank at another moment. Every survivor
// must end by itself with an error that names a rank and a phase, and nothing may be left behind.
//
// Environment: SHUNT_KILL_SEED  seed of the moments, default 1
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <regex>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include <shunt/alltoall/all_to_all.h>
#include <shunt/core/error.h>
#include <shunt/core/random.h>
#include <shunt/transport/launch.h>
#include <shunt/transport/transport.h>

namespace shunt {
namespace {

constexpr int kRuns = 50;
constexpr std::int32_t kMaxRanks = 5;
constexpr std::chrono::seconds kDeadline{20};

/// Where in a step the victim ends. `from_outside`: a sibling kills it after a random time, wherever it is.
enum class Moment : std::uint8_t {
  before_dispatch,
  dispatch_sent,
  in_experts,
  combine_sent,
  combined,
  from_outside,
};

struct Plan {
  std::int32_t ranks = 2;
  std::int32_t victim = 0;
  std::int32_t killer = 0;  ///< from_outside only
  Moment moment = Moment::from_outside;
  std::int64_t step = 0;
  std::chrono::microseconds delay{0};
  AllToAllConfig config;
};

Plan make_plan(int run) {
  const char* text = std::getenv("SHUNT_KILL_SEED");
  Random dice(text == nullptr ? 1 : std::strtoull(text, nullptr, 10), static_cast<std::uint64_t>(run));
  Plan plan;
  plan.ranks = 2 + static_cast<std::int32_t>(dice.below(4));
  const auto ranks = static_cast<std::uint64_t>(plan.ranks);
  plan.victim = static_cast<std::int32_t>(dice.below(ranks));
  plan.killer = (plan.victim + 1 + static_cast<std::int32_t>(dice.below(ranks - 1))) % plan.ranks;
  // Every second run strikes from outside: inside a call as well as between calls.
  plan.moment = run % 2 == 0 ? Moment::from_outside : static_cast<Moment>(run / 2 % 5);
  plan.step = static_cast<std::int64_t>(dice.below(40));
  plan.delay = std::chrono::microseconds(dice.below(3000));
  auto& config = plan.config;
  config.max_tokens = 1 + static_cast<std::int64_t>(dice.below(8));
  config.num_experts = 1 + static_cast<std::int32_t>(dice.below(12));
  config.top_k =
      1 + static_cast<std::int32_t>(dice.below(static_cast<std::uint64_t>(std::min(config.num_experts, 3))));
  config.hidden = 1 + static_cast<std::int64_t>(dice.below(300));
  config.delivery = dice.below(3) == 0 ? Delivery::view : Delivery::rows;
  config.movement = dice.below(2) == 0 ? Movement::pull : Movement::push;
  config.deadline = kDeadline;
  return plan;
}

/// What the ranks tell the parent; a killed one cannot return it.
struct Diary {
  std::atomic<pid_t> pid[kMaxRanks];
  std::atomic<std::int64_t> steps[kMaxRanks];
  std::atomic<int> code[kMaxRanks];                   ///< Errc + 1 of the error that ended the rank
  std::atomic<std::int64_t> last_call_ms[kMaxRanks];  ///< How long the call took that ended the rank
};

class SharedDiary {
 public:
  SharedDiary()
      : diary_(static_cast<Diary*>(
            mmap(nullptr, sizeof(Diary), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0))) {}
  ~SharedDiary() { munmap(diary_, sizeof(Diary)); }
  SharedDiary(const SharedDiary&) = delete;
  SharedDiary& operator=(const SharedDiary&) = delete;
  Diary* operator->() const { return diary_; }

 private:
  Diary* diary_;
};

/// Steps for ever. Only an error or a signal ends it.
class EndlessRank {
 public:
  EndlessRank(Transport& transport, const Plan& plan, const SharedDiary& diary)
      : plan_(plan),
        diary_(diary),
        rank_(transport.world().rank),
        object_(transport, plan.config),
        rows_(size(plan.config.max_tokens * plan.config.hidden * 2), std::byte{0}),
        out_(rows_),
        weights_(size(plan.config.max_tokens * plan.config.top_k), 1.0F) {
    for (std::int64_t token = 0; token < plan.config.max_tokens; ++token)
      for (std::int32_t k = 0; k < plan.config.top_k; ++k)
        ids_.push_back(static_cast<std::int32_t>((token + rank_ + k) % plan.config.num_experts));
  }

  [[noreturn]] void run() {
    for (;; ++diary_->steps[size(rank_)]) {
      try {
        step();
      } catch (const Error& error) {
        diary_->code[size(rank_)] = static_cast<int>(error.code()) + 1;
        const auto took = Clock::now() - call_began_;
        diary_->last_call_ms[size(rank_)] =
            std::chrono::duration_cast<std::chrono::milliseconds>(took).count();
        throw;
      }
    }
  }

 private:
  static std::size_t size(std::int64_t n) { return static_cast<std::size_t>(n); }

  void step() {
    const auto& config = plan_.config;
    strike(Moment::before_dispatch);
    call_began_ = Clock::now();
    const Rows tokens(rows_.data(), config.max_tokens, config.hidden, config.token_dtype);
    auto dispatched = object_.dispatch_send(
        {.tokens = tokens}, View2<const std::int32_t>(ids_.data(), config.max_tokens, config.top_k));
    strike(Moment::dispatch_sent);
    call_began_ = Clock::now();
    const Received received = object_.dispatch_recv(std::move(dispatched));
    strike(Moment::in_experts);
    const MutableRows results = object_.expert_output();
    for (std::int64_t row = 0; row < received.starts.back(); ++row)
      std::fill_n(results.row(row), results.row_bytes(), std::byte{0});
    call_began_ = Clock::now();
    auto combined = object_.combine_send(results);
    strike(Moment::combine_sent);
    call_began_ = Clock::now();
    object_.combine_recv(std::move(combined), {weights_.data(), config.max_tokens, config.top_k},
                         {out_.data(), config.max_tokens, config.hidden, config.out_dtype});
    strike(Moment::combined);
  }

  void strike(Moment here) {
    if (diary_->steps[size(rank_)] != plan_.step) return;
    if (plan_.moment == here && rank_ == plan_.victim) raise(SIGKILL);
    if (plan_.moment != Moment::from_outside || rank_ != plan_.killer || here != Moment::before_dispatch)
      return;
    // The killer must go on working, so that the victim dies inside a call; its thread strikes meanwhile.
    std::thread([pid = diary_->pid[size(plan_.victim)].load(), delay = plan_.delay] {
      std::this_thread::sleep_for(delay);
      kill(pid, SIGKILL);
    }).detach();
  }

  const Plan& plan_;
  const SharedDiary& diary_;
  std::int32_t rank_;
  AllToAll object_;
  std::vector<std::byte> rows_, out_;
  std::vector<std::int32_t> ids_;
  std::vector<float> weights_;
  Clock::time_point call_began_;
};

std::set<std::string> names_in(const char* directory) {
  std::set<std::string> names;
  // Files of an Open MPI that runs beside come and go.
  for (const auto& entry : std::filesystem::directory_iterator(directory))
    if (const std::string name = entry.path().filename(); name.find("_segment.") == std::string::npos)
      names.insert(name);
  return names;
}

/// Open memory files of this process.
int open_memory_files() {
  int found = 0;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    std::error_code gone;
    if (std::filesystem::read_symlink(entry.path(), gone).string().find("memfd:") != std::string::npos)
      ++found;
  }
  return found;
}

void expect_survivor(const RankOutcome& outcome, const SharedDiary& diary) {
  const auto rank = static_cast<std::size_t>(outcome.rank);
  EXPECT_EQ(outcome.signal, 0) << "survivor " << rank;
  EXPECT_EQ(outcome.exit_status, 1) << "survivor " << rank << ": " << outcome.message;
  const int code = diary->code[rank] - 1;
  EXPECT_TRUE(code == static_cast<int>(Errc::peer_lost) || code == static_cast<int>(Errc::timeout))
      << "survivor " << rank << " ended with error " << code << ": " << outcome.message;
  EXPECT_TRUE(std::regex_search(outcome.message, std::regex("rank \\d"))) << outcome.message;
  EXPECT_TRUE(std::regex_search(outcome.message, std::regex("dispatch|combine"))) << outcome.message;
  EXPECT_LE(diary->last_call_ms[rank],
            std::chrono::milliseconds(kDeadline + std::chrono::seconds(10)).count())
      << "survivor " << rank << " outlived its deadline: " << outcome.message;
}

void run_once(int run) {
  const Plan plan = make_plan(run);
  SCOPED_TRACE(testing::Message() << "run " << run << ": " << plan.ranks << " ranks, victim " << plan.victim
                                  << ", moment " << static_cast<int>(plan.moment) << ", step " << plan.step);
  const SharedDiary diary;
  const auto shared_memory = names_in("/dev/shm");
  const int memory_files = open_memory_files();
  const auto outcomes = run_ranks({.ranks = plan.ranks}, [&](Transport& transport) -> int {
    diary->pid[transport.world().rank] = getpid();
    EndlessRank(transport, plan, diary).run();
  });

  ASSERT_EQ(outcomes.size(), static_cast<std::size_t>(plan.ranks));
  for (const auto& outcome : outcomes) {
    if (outcome.rank == plan.victim)
      EXPECT_EQ(outcome.signal, SIGKILL) << outcome.message;
    else
      expect_survivor(outcome, diary);
  }
  for (std::int32_t rank = 0; rank < plan.ranks; ++rank) {
    const pid_t pid = diary->pid[rank];
    EXPECT_NE(pid, getpid());
    EXPECT_TRUE(kill(pid, 0) == -1 && errno == ESRCH)
        << "process " << pid << " of rank " << rank << " is left";
  }
  EXPECT_TRUE(waitpid(-1, nullptr, WNOHANG) == -1 && errno == ECHILD) << "a child is left";
  for (const auto& name : names_in("/dev/shm"))
    EXPECT_TRUE(shared_memory.contains(name)) << "/dev/shm/" << name << " is left";
  EXPECT_EQ(open_memory_files(), memory_files);
}

TEST(AllToAllKillTest, SurvivorsEndNamingRankAndPhase) {
  for (int run = 0; run < kRuns; ++run) run_once(run);
}

}  // namespace
}  // namespace shunt
