// A rank is killed or frozen in the middle of a step and the others go on without it: every survivor completes all its
// steps, each with the rows and sums of exactly the ranks that took part in it. 20 runs each; some lose two ranks.
//
// Environment: SHUNT_MASK_SEED  seed of the runs, default 1
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include <shunt/alltoall/all_to_all.h>
#include <shunt/core/error.h>
#include <shunt/core/random.h>
#include <shunt/transport/launch.h>
#include <shunt/transport/wrap.h>

namespace shunt {
namespace {

constexpr int kRuns = 20;
constexpr std::int32_t kMaxRanks = 8;
constexpr std::int64_t kSteps = 60;
/// Also the time a frozen rank costs; far longer than a step takes on a machine with 4 ranks for each core.
constexpr std::chrono::milliseconds kDeadline{2500};

struct Strike {
  std::int32_t victim = 0;
  std::int64_t step = 0;
  std::chrono::microseconds delay{0};
  int signal = SIGKILL;
};

struct Plan {
  std::int32_t ranks = 3;
  std::int32_t nodes = 1;
  bool alone = false;  ///< No rank reaches another's memory
  bool accumulate = false;
  bool in_place = false;  ///< Tokens in token_buffer()
  std::vector<Strike> strikes;
  AllToAllConfig config;
};

Plan make_plan(int run, int signal) {
  const char* text = std::getenv("SHUNT_MASK_SEED");
  Random dice(text == nullptr ? 1 : std::strtoull(text, nullptr, 10),
              static_cast<std::uint64_t>(run) * 100 + static_cast<std::uint64_t>(signal));
  Plan plan;
  plan.ranks = 3 + static_cast<std::int32_t>(dice.below(kMaxRanks - 2));
  plan.nodes = dice.below(2) == 0
                   ? 1
                   : 1 + static_cast<std::int32_t>(dice.below(static_cast<std::uint64_t>(plan.ranks)));
  plan.alone = dice.below(5) == 0;
  const auto ranks = static_cast<std::uint64_t>(plan.ranks);
  // With 5 ranks or more two may go, one after the other or both in the same step.
  const std::uint64_t lost = plan.ranks >= 5 ? 1 + dice.below(2) : 1;
  for (std::uint64_t i = 0; i < lost; ++i) {
    Strike strike{.victim = static_cast<std::int32_t>(dice.below(ranks)),
                  .step = static_cast<std::int64_t>(dice.below(kSteps - 10)),
                  .delay = std::chrono::microseconds(dice.below(3000)),
                  .signal = signal};
    if (i > 0 && dice.below(2) == 0) strike.step = plan.strikes[0].step;
    if (i == 0 || strike.victim != plan.strikes[0].victim) plan.strikes.push_back(strike);
  }
  auto& config = plan.config;
  config.max_tokens = 1 + static_cast<std::int64_t>(dice.below(8));
  config.num_experts = 1 + static_cast<std::int32_t>(dice.below(16));
  config.top_k =
      1 + static_cast<std::int32_t>(dice.below(static_cast<std::uint64_t>(std::min(config.num_experts, 4))));
  config.hidden = 1 + static_cast<std::int64_t>(dice.below(300));
  config.token_dtype = config.payload = config.expert_dtype = config.out_dtype = DType::f32;
  if (plan.ranks % 2 == 0 && dice.below(3) == 0) config.dp_size = 2;
  config.delivery = dice.below(3) == 0 ? Delivery::view : Delivery::rows;
  config.movement = dice.below(2) == 0 ? Movement::pull : Movement::push;
  config.path = dice.below(2) == 0 ? Path::flat : Path::hierarchical;
  config.check_messages = dice.below(3) == 0;
  config.check_replicas = dice.below(3) == 0;
  plan.accumulate = dice.below(3) == 0;
  plan.in_place = dice.below(2) == 0;
  config.on_peer_loss = PeerLoss::mask;
  config.deadline = kDeadline;
  return plan;
}

std::size_t at(std::int64_t n) {
  return static_cast<std::size_t>(n);
}

/// What the ranks tell the parent; a killed one cannot return it.
struct Diary {
  std::atomic<pid_t> pid[kMaxRanks];
  std::atomic<std::int64_t> step[kMaxRanks];
  std::atomic<std::uint8_t> void_steps[kMaxRanks][kSteps];  ///< 1 where peer_masked said so
  std::atomic<std::uint32_t> alive[kMaxRanks][kSteps];  ///< Ranks that took part in a completed step, as bits
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

/// What a group brings to a step, known to all: small whole numbers, so that sums are exact.
std::int32_t id_of(const AllToAllConfig& c, std::int32_t group, std::int64_t step, std::int64_t token,
                   std::int32_t k) {
  return static_cast<std::int32_t>((group * 5 + step * 3 + token + k) % c.num_experts);
}
float token_of(std::int32_t group, std::int64_t step, std::int64_t token) {
  return static_cast<float>(group * 1000 + step * 8 + token + 1);
}

class SteppingRank {
 public:
  SteppingRank(Transport& transport, const Plan& plan, const SharedDiary& diary)
      : plan_(plan), diary_(diary), rank_(transport.world().rank), object_(transport, plan.config) {}

  void run() {
    for (std::int64_t step = 0; step < kSteps; ++step) {
      diary_->step[at(rank_)] = step;
      strike(step);
      while (!complete(step)) {
      }
    }
  }

 private:
  [[noreturn]] static void fail(const std::string& what) { throw Error(Errc::check_failed, what); }

  /// False where the step is void.
  bool complete(std::int64_t step) {
    const auto alive = object_.alive();
    const std::vector<std::uint8_t> took_part(alive.begin(), alive.end());
    try {
      one_step(step, took_part);
    } catch (const Error& error) {
      if (error.code() != Errc::peer_masked) throw;
      if (std::string(error.what()).find("is void") == std::string::npos) fail(error.what());
      diary_->void_steps[at(rank_)][at(step)] = 1;
      return false;
    }
    std::uint32_t bits = 0;
    for (std::size_t r = 0; r < took_part.size(); ++r) bits |= took_part[r] != 0 ? 1U << r : 0U;
    diary_->alive[at(rank_)][at(step)] = bits;
    return true;
  }

  void one_step(std::int64_t step, const std::vector<std::uint8_t>& alive) {
    const AllToAllConfig& c = plan_.config;
    const std::int32_t group = rank_ / c.dp_size;
    std::vector<float> tokens(at(c.max_tokens * c.hidden));
    std::vector<std::int32_t> ids;
    for (std::int64_t t = 0; t < c.max_tokens; ++t) {
      std::fill_n(tokens.begin() + t * c.hidden, c.hidden, token_of(group, step, t));
      for (std::int32_t k = 0; k < c.top_k; ++k) ids.push_back(id_of(c, group, step, t, k));
    }
    Rows given(tokens.data(), c.max_tokens, c.hidden, DType::f32);
    if (plan_.in_place) {
      const MutableRows buffer = object_.token_buffer();
      std::memcpy(buffer.data, tokens.data(), tokens.size() * sizeof(float));
      given = Rows(buffer.data, c.max_tokens, c.hidden, DType::f32);
    }
    auto sent = object_.dispatch_send({.tokens = given},
                                      View2<const std::int32_t>(ids.data(), c.max_tokens, c.top_k));
    const Received received = object_.dispatch_recv(std::move(sent));
    check_rows(received, step, alive);
    const ExpertPartition partition{c.num_experts, plan_.ranks};
    const MutableRows results = object_.expert_output();
    for_each_row(received, [&](std::int32_t expert, std::int64_t row, const float* from) {
      auto* to = static_cast<float*>(static_cast<void*>(results.row(row)));
      for (std::int64_t h = 0; h < c.hidden; ++h) to[h] = from[h] * static_cast<float>(expert + 1);
    });
    auto back = object_.combine_send(Rows(results.data, received.starts.back(), c.hidden, DType::f32));
    // Kept over the attempts at a step: one that is void must not have added to it.
    if (step != out_of_) sums_.assign(at(c.max_tokens * c.hidden), 7);
    out_of_ = step;
    std::vector<float>& out = sums_;
    const std::vector<float> weights(at(c.max_tokens * c.top_k), 0.5F);
    object_.combine_recv(std::move(back), {weights.data(), c.max_tokens, c.top_k},
                         {out.data(), c.max_tokens, c.hidden, DType::f32}, plan_.accumulate);
    for (std::int64_t i = 0; i < c.max_tokens * c.hidden; ++i) {
      const std::int64_t t = i / c.hidden;
      float want = plan_.accumulate ? 7.0F : 0.0F;
      for (std::int32_t k = 0; k < c.top_k; ++k) {
        const std::int32_t expert = id_of(c, group, step, t, k);
        if (alive[at(partition.owner(expert))] != 0)
          want += 0.5F * token_of(group, step, t) * static_cast<float>(expert + 1);
      }
      if (out[at(i)] != want)
        fail("step " + std::to_string(step) + " token " + std::to_string(t) + " is " +
             std::to_string(out[at(i)]) + ", not " + std::to_string(want));
    }
  }

  template <class Visit>
  void for_each_row(const Received& received, const Visit& visit) const {
    const ExpertPartition partition{plan_.config.num_experts, plan_.ranks};
    for (std::int32_t e = 0; e < partition.count(rank_); ++e)
      for (std::int64_t row = received.starts[at(e)]; row < received.starts[at(e)] + received.counts[at(e)];
           ++row)
        visit(partition.first(rank_) + e, row,
              static_cast<const float*>(plan_.config.delivery == Delivery::view
                                            ? received.row_pointers[at(row)]
                                            : static_cast<const void*>(received.rows.row(row))));
  }

  /// By (expert, group, token), of the groups that still have a rank.
  void check_rows(const Received& received, std::int64_t step, const std::vector<std::uint8_t>& alive) const {
    const AllToAllConfig& c = plan_.config;
    std::vector<float> want;
    const ExpertPartition partition{c.num_experts, plan_.ranks};
    for (std::int32_t e = 0; e < partition.count(rank_); ++e)
      for (std::int32_t group = 0; group < plan_.ranks / c.dp_size; ++group) {
        const auto first = alive.begin() + group * c.dp_size;
        if (std::none_of(first, first + c.dp_size, [](std::uint8_t one) { return one != 0; })) continue;
        for (std::int64_t t = 0; t < c.max_tokens; ++t)
          for (std::int32_t k = 0; k < c.top_k; ++k)
            if (id_of(c, group, step, t, k) == partition.first(rank_) + e)
              want.push_back(token_of(group, step, t));
      }
    std::size_t next = 0;
    for_each_row(received, [&](std::int32_t expert, std::int64_t row, const float* from) {
      if (next >= want.size() || from[0] != want[next] || from[c.hidden - 1] != want[next])
        fail("step " + std::to_string(step) + " row " + std::to_string(row) + " of expert " +
             std::to_string(expert) + " is " + std::to_string(from[0]) + ", not " +
             (next < want.size() ? std::to_string(want[next]) : "absent"));
      ++next;
    });
    if (next != want.size())
      fail("step " + std::to_string(step) + ": " + std::to_string(next) + " rows, not " +
           std::to_string(want.size()));
  }

  /// The victim's own thread strikes after a while, so that it is hit inside a call as well as between calls.
  void strike(std::int64_t step) const {
    for (const Strike& one : plan_.strikes) {
      if (one.victim != rank_) continue;
      // Not struck yet, because steps are short: then here, so that no run ends before its loss.
      if (step == one.step + 5) raise(one.signal);
      if (one.step != step) continue;
      std::thread([one] {
        std::this_thread::sleep_for(one.delay);
        kill(getpid(), one.signal);
      }).detach();
    }
  }

  const Plan& plan_;
  const SharedDiary& diary_;
  std::int32_t rank_;
  AllToAll object_;
  std::vector<float> sums_;
  std::int64_t out_of_ = -1;
};

void run_once(int run, int signal) {
  const Plan plan = make_plan(run, signal);
  std::string what = "run " + std::to_string(run) + ": " + std::to_string(plan.ranks) + " ranks on " +
                     std::to_string(plan.nodes) + " nodes" + (plan.alone ? ", each alone" : "") +
                     ", dp_size " + std::to_string(plan.config.dp_size) + ", victims";
  for (const Strike& one : plan.strikes)
    what += " " + std::to_string(one.victim) + " in step " + std::to_string(one.step);
  SCOPED_TRACE(what);
  const SharedDiary diary;
  const auto outcomes = run_ranks({.ranks = plan.ranks}, [&](Transport& transport) {
    diary->pid[transport.world().rank] = getpid();
    const auto apart = make_delayed(
        transport,
        {.probability = 0.0, .hide_load_store = plan.alone, .hide_other_nodes = true, .nodes = plan.nodes});
    SteppingRank(*apart, plan, diary).run();
    return 0;
  });
  ASSERT_EQ(outcomes.size(), at(plan.ranks));
  std::int32_t survivor = -1;
  for (const auto& outcome : outcomes) {
    const bool victim = std::any_of(plan.strikes.begin(), plan.strikes.end(),
                                    [&](const Strike& one) { return one.victim == outcome.rank; });
    if (victim) {
      EXPECT_NE(outcome.exit_status, 0) << "victim " << outcome.rank << ": " << outcome.message;
      continue;
    }
    EXPECT_EQ(outcome.exit_status, 0) << "survivor " << outcome.rank << " in step "
                                      << diary->step[at(outcome.rank)] << ": " << outcome.message;
    if (survivor < 0) survivor = outcome.rank;
    for (std::int64_t step = 0; step < kSteps; ++step) {
      EXPECT_EQ(diary->void_steps[at(outcome.rank)][at(step)], diary->void_steps[at(survivor)][at(step)])
          << "of ranks " << outcome.rank << " and " << survivor << " one was not told that step " << step
          << " is void";
      EXPECT_EQ(diary->alive[at(outcome.rank)][at(step)], diary->alive[at(survivor)][at(step)])
          << "ranks " << outcome.rank << " and " << survivor << " did step " << step << " with others";
    }
  }
  ASSERT_GE(survivor, 0);
  EXPECT_EQ(std::popcount(diary->alive[at(survivor)][kSteps - 1].load()),
            plan.ranks - static_cast<int>(plan.strikes.size()));
}

TEST(AllToAllMaskTest, GoesOnWithoutKilledRanks) {
  for (int run = 0; run < kRuns; ++run) run_once(run, SIGKILL);
}

TEST(AllToAllMaskTest, GoesOnWithoutFrozenRanks) {
  for (int run = 0; run < kRuns; ++run) run_once(run, SIGSTOP);
}

}  // namespace
}  // namespace shunt
