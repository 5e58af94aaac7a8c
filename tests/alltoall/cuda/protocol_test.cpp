// What the sweep does not draw: errors that kernels find, ranks that never come, masks, graphs, on the emulator.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <shunt/core/error.h>

#include "emulated.h"
#include "rank_run.h"
#include "replay.h"
#include "step_run.h"

namespace gpu {
namespace {

using shunt::Errc;
using shunt::Error;
using testing::AllOf;
using testing::HasSubstr;

/// A small object: every rank brings `tokens` tokens.
sweep::ObjectPlan small_object(std::int32_t ranks, std::int64_t tokens = 6) {
  sweep::ObjectPlan object;
  object.seed = 11;
  object.num_ranks = ranks;
  object.config.max_tokens = tokens;
  object.config.num_experts = 2 * ranks + 1;
  object.config.top_k = 3;
  object.config.hidden = 20;
  object.config.deadline = std::chrono::milliseconds(120'000);
  return object;
}

sweep::StepPlan small_step(const sweep::ObjectPlan& object, std::uint64_t stream = 1) {
  sweep::StepPlan step;
  step.stream = stream;
  const auto groups = static_cast<std::size_t>(object.num_ranks / object.config.dp_size);
  step.given.assign(groups, object.config.max_tokens);
  step.live = step.given;
  return step;
}

/// What each call of check() says, by rank; nothing: no error.
using Findings = std::vector<std::optional<Error>>;

/// One object on all ranks of one machine.
struct Ranks {
  explicit Ranks(const sweep::ObjectPlan& object, std::uint64_t step_ns = 1, bool distant = false,
                 std::uint64_t seed = 1)
      : plan(object),
        machine({.seed = seed, .processors = 2, .step_ns = step_ns}, object.num_ranks),
        members(static_cast<std::size_t>(object.num_ranks)) {
    if (distant) postman = std::make_unique<Postman>(seed, object.num_ranks, 3);
  }

  [[nodiscard]] Phase set_up() {
    return {.each =
                [this](std::int32_t rank, shunt::Transport& transport) {
                  members[at(rank)] =
                      std::make_unique<RankRun>(transport, plan, shunt::cuda::AllToAllOptions{.limit = {2}},
                                                make_engine(machine, rank, postman.get()), machine);
                },
            .alone = {}};
  }
  [[nodiscard]] Phase tear_down() {
    return {.each = [this](std::int32_t rank, shunt::Transport&) { members[at(rank)].reset(); },
            .alone = {},
            .always = true};
  }
  /// All four calls of every rank, but from call `from` on without rank `without`.
  void queue(const sweep::StepPlan& step, std::int32_t without = -1, int from = 0) {
    steps.push_back(step);
    oracle::Reference& reference = references.emplace_back(sweep::make_step(plan, steps.back()));
    queue_against(reference, without, from);
  }
  void queue_against(oracle::Reference& reference, std::int32_t without = -1, int from = 0) {
    for (int call = 0; call < 4; ++call)
      for (std::int32_t rank = 0; rank < plan.num_ranks; ++rank)
        if (rank != without || call < from) members[at(rank)]->advance(steps.back(), reference);
  }
  [[nodiscard]] std::optional<Error> finding(std::int32_t rank) {
    try {
      members[at(rank)]->object().check();
    } catch (const Error& error) {
      return error;
    }
    return std::nullopt;
  }
  [[nodiscard]] Findings findings() {
    Findings all;
    for (std::int32_t rank = 0; rank < plan.num_ranks; ++rank) all.push_back(finding(rank));
    return all;
  }
  /// Runs what is queued, and requires every output to be right and no error.
  void run_well() {
    machine.run();
    for (auto& member : members) member->check();
  }
  [[nodiscard]] static std::size_t at(std::int32_t i) { return static_cast<std::size_t>(i); }

  sweep::ObjectPlan plan;
  shunt::emulator::Machine machine;
  std::unique_ptr<Postman> postman;
  std::deque<sweep::StepPlan> steps;
  std::deque<oracle::Reference> references;
  std::vector<std::unique_ptr<RankRun>> members;
};

/// Set-up, `body`, tear-down.
void with(Ranks& ranks, const std::function<void()>& body) {
  run_phases(ranks.plan.num_ranks, {ranks.set_up(), {.each = {}, .alone = body}, ranks.tear_down()});
}

std::vector<std::int64_t> ids_of(const oracle::Reference& reference, std::size_t group) {
  return reference.step().groups[group].ids;
}

/// Rank `bad` brings `ids`; the step is void on every rank with that finding, and the next one works.
void expect_void(const std::function<void(std::vector<std::int64_t>&)>& spoil, const char* says) {
  for (const bool distant : {false, true}) {
    Ranks ranks(small_object(3), 1, distant);
    with(ranks, [&] {
      const sweep::StepPlan step = small_step(ranks.plan);
      const oracle::Reference whole(sweep::make_step(ranks.plan, step));
      std::vector<std::int64_t> ids = ids_of(whole, 1);
      spoil(ids);
      ranks.members[1]->bring(ids);
      sweep::StepPlan void_step = step;
      void_step.outcome = sweep::Outcome::overflow;  // what the checks expect of a void step
      ranks.queue(void_step);
      ranks.machine.run();
      for (auto& member : ranks.members) member->runs().back().check_out();
      for (const auto& finding : ranks.findings()) {
        ASSERT_TRUE(finding.has_value());
        EXPECT_EQ(finding->code(), Errc::invalid_argument);
        EXPECT_THAT(finding->what(), AllOf(HasSubstr("dispatch step 1: rank 1 brought"), HasSubstr(says),
                                           HasSubstr("the step is void on every rank")));
      }
      for (auto& member : ranks.members) {
        member->runs().clear();
        member->bring({});
      }
      ranks.queue(small_step(ranks.plan, 2));
      ranks.run_well();
    });
  }
}

TEST(AllToAllGpuTest, NamesTheFirstIdThatIsOutsideAndVoidsTheStepOnEveryRank) {
  expect_void(
      [](std::vector<std::int64_t>& ids) {
        ids[4] = 7;  // one of R * 2 + 1 = 7 experts too many
        ids[11] = -2;
      },
      "token 1, k 1: expert id 7 is outside [-1, 6]");
}

TEST(AllToAllGpuTest, NamesAnExpertThatATokenNamesTwice) {
  expect_void([](std::vector<std::int64_t>& ids) { ids[6] = ids[8] = 3, ids[7] = 5; },
              "token 2, k 2: expert 3 is named twice by this token");
}

TEST(AllToAllGpuTest, RefusesLiveTokensBeyondThoseGiven) {
  Ranks ranks(small_object(2));
  with(ranks, [&] {
    sweep::StepPlan step = small_step(ranks.plan);
    step.use_live_tokens = true;
    step.outcome = sweep::Outcome::overflow;
    const oracle::Reference whole(sweep::make_step(ranks.plan, step));
    step.live[1] = 9;  // of 6; the reference of this step is never asked for its rows
    ranks.steps.push_back(step);
    ranks.references.push_back(whole);
    ranks.queue_against(ranks.references.back());
    ranks.machine.run();
    for (const auto& finding : ranks.findings()) {
      ASSERT_TRUE(finding.has_value());
      EXPECT_THAT(finding->what(), HasSubstr("rank 1 brought live_tokens 9; allowed are 0 to the 6 given"));
    }
  });
}

TEST(AllToAllGpuTest, NamesARankThatNeverComesToDispatch) {
  for (const bool distant : {false, true}) {
    sweep::ObjectPlan object = small_object(4);
    object.config.deadline = std::chrono::milliseconds(5);
    Ranks ranks(object, 100, distant);
    with(ranks, [&] {
      ranks.steps.push_back(small_step(ranks.plan));
      ranks.references.emplace_back(sweep::make_step(ranks.plan, ranks.steps.back()));
      for (std::int32_t rank : {0, 1, 3}) {
        ranks.members[Ranks::at(rank)]->advance(ranks.steps.back(), ranks.references.back());
        // The experts would find rows missing, so this calls the object itself.
        ranks.members[Ranks::at(rank)]->receive_unchecked();
      }
      ranks.machine.run();
      for (std::int32_t rank : {0, 1, 3}) {
        const auto finding = ranks.finding(rank);
        ASSERT_TRUE(finding.has_value()) << "rank " << rank;
        EXPECT_EQ(finding->peer(), 2) << finding->what();
        EXPECT_THAT(finding->what(), HasSubstr("in dispatch, step 1"));
        EXPECT_THAT(finding->code(), testing::AnyOf(Errc::timeout, Errc::peer_lost));
        EXPECT_EQ(*ranks.members[Ranks::at(rank)]->object().received().num_rows, 0);
        EXPECT_THROW(ranks.members[Ranks::at(rank)]->return_unchecked(), Error);
      }
    });
  }
}

TEST(AllToAllGpuTest, NamesARankThatNeverComesToCombine) {
  for (const bool distant : {false, true}) {
    sweep::ObjectPlan object = small_object(4);
    object.config.deadline = std::chrono::milliseconds(5);
    Ranks ranks(object, 100, distant);
    with(ranks, [&] {
      ranks.queue(small_step(ranks.plan), 2, 2);
      ranks.machine.run();
      for (std::int32_t rank : {0, 1, 3}) {
        const auto finding = ranks.finding(rank);
        ASSERT_TRUE(finding.has_value()) << "rank " << rank;
        EXPECT_EQ(finding->peer(), 2) << finding->what();
        EXPECT_THAT(finding->what(), HasSubstr("in combine, step 1"));
      }
    });
  }
}

TEST(AllToAllGpuTest, FindsMembersOfAGroupThatBringDifferentTokens) {
  sweep::ObjectPlan object = small_object(4);
  object.config.dp_size = 2;
  Ranks ranks(object);
  with(ranks, [&] {
    const sweep::StepPlan step = small_step(ranks.plan);
    const oracle::Reference whole(sweep::make_step(ranks.plan, step));
    std::vector<std::int64_t> ids = ids_of(whole, 1);
    ids[0] = -1;  // a token that rank 2 sends, and rank 3 does not
    ranks.steps.push_back(step);
    ranks.references.push_back(whole);
    ranks.members[3]->bring(ids);
    ranks.queue_against(ranks.references.back());
    ranks.machine.run();
    const auto finding = ranks.finding(3);
    ASSERT_TRUE(finding.has_value());
    EXPECT_THAT(finding->what(), HasSubstr("the members brought different tokens"));
    EXPECT_FALSE(ranks.finding(0).has_value());
    // The others find in the next step that it has gone, and blame nobody else.
    for (std::int32_t rank : {0, 1, 2}) {
      ranks.members[Ranks::at(rank)]->advance(ranks.steps.back(), ranks.references.back());
      ranks.members[Ranks::at(rank)]->receive_unchecked();
    }
    ranks.machine.run();
    for (std::int32_t rank : {0, 1, 2}) {
      const auto next = ranks.finding(rank);
      ASSERT_TRUE(next.has_value()) << "rank " << rank;
      EXPECT_EQ(next->peer(), 3) << next->what();
      EXPECT_THAT(next->what(), HasSubstr("rank 3 has found its own part wrong and gone, as it says itself; "
                                          "it was waited for in dispatch, step 2"));
    }
  });
}

/// Nobody asks between the void step and the loss, as in a replayed graph.
TEST(AllToAllGpuTest, NamesALostRankAlsoBehindAVoidStepThatNobodyAskedAbout) {
  for (const bool distant : {false, true}) {
    sweep::ObjectPlan object = small_object(4);
    object.config.deadline = std::chrono::milliseconds(5);
    Ranks ranks(object, 100, distant);
    with(ranks, [&] {
      sweep::StepPlan void_step = small_step(ranks.plan);
      std::vector<std::int64_t> ids = ids_of(oracle::Reference(sweep::make_step(ranks.plan, void_step)), 1);
      ids[4] = 99;
      ranks.members[1]->bring(ids);
      void_step.outcome = sweep::Outcome::overflow;  // what the checks expect of a void step
      ranks.queue(void_step);
      ranks.members[1]->bring({});
      ranks.queue(small_step(ranks.plan, 2), 2, 2);
      ranks.machine.run();
      for (std::int32_t rank : {0, 1, 3}) {
        for (const char* time : {"first", "second"}) {
          const auto finding = ranks.finding(rank);
          ASSERT_TRUE(finding.has_value()) << "rank " << rank << ", " << time << " time";
          EXPECT_EQ(finding->peer(), 2) << finding->what();
          EXPECT_THAT(finding->what(),
                      AllOf(HasSubstr("in combine, step 2"), HasSubstr("and not asked about before"),
                            HasSubstr("dispatch step 1: rank 1 brought token 1, k 1: expert id 99")));
        }
      }
      // Rank 2 has seen the void step alone, and hears of the loss of nobody.
      const auto finding = ranks.finding(2);
      ASSERT_TRUE(finding.has_value());
      EXPECT_EQ(finding->code(), Errc::invalid_argument);
      EXPECT_FALSE(ranks.finding(2).has_value());
    });
  }
}

TEST(AllToAllGpuTest, LeavesNoRowsOfAStepBeforeInAVoidStepOfViews) {
  sweep::ObjectPlan object = small_object(3);
  object.config.delivery = shunt::Delivery::view;
  object.config.layout = shunt::RowLayout::padded;
  Ranks ranks(object);
  with(ranks, [&] {
    ranks.queue(small_step(ranks.plan));
    sweep::StepPlan void_step = small_step(ranks.plan, 2);
    std::vector<std::int64_t> ids = ids_of(oracle::Reference(sweep::make_step(ranks.plan, void_step)), 1);
    ids[0] = -9;
    ranks.members[1]->bring(ids);
    void_step.outcome = sweep::Outcome::overflow;
    ranks.queue(void_step);  // its experts require that nothing begins anywhere
    ranks.machine.run();
    for (const auto& finding : ranks.findings()) EXPECT_TRUE(finding.has_value());
    EXPECT_EQ(ranks.members[0]->object().received().starts[3], 0);
  });
}

/// The four calls are captured once; what they launched is then run again and again with other tokens, ids and live
/// counts at the same addresses, several replays ahead of the slowest rank.
TEST(AllToAllGpuTest, ReplaysACapturedStepWithChangingCounts) {
  constexpr std::int32_t kRanks = 3;
  constexpr std::int32_t kExperts = 7;
  const char* asked = std::getenv("SHUNT_GPU_REPLAYS");
  const std::uint64_t replays = asked == nullptr ? 40 : std::strtoull(asked, nullptr, 10);
  for (const bool distant : {false, true}) {
    shunt::emulator::Machine machine({.seed = 5, .processors = 2, .step_ns = 1}, kRanks);
    Postman postman(5, kRanks, 2);
    std::vector<Recording> recordings(kRanks);
    std::vector<ReplayStep> steps(kRanks);
    std::vector<std::unique_ptr<shunt::cuda::AllToAll>> objects(kRanks);
    const Phase set_up = {
        .each =
            [&](std::int32_t rank, shunt::Transport& transport) {
              Recording& recording = recordings[Ranks::at(rank)];
              auto& object = objects[Ranks::at(rank)];
              object = std::make_unique<shunt::cuda::AllToAll>(
                  transport, ReplayStep::config(kExperts), shunt::cuda::AllToAllOptions{.limit = {1}},
                  make_engine(machine, rank, distant ? &postman : nullptr, &recording));
              ReplayStep& step = steps[Ranks::at(rank)];
              const auto rows = [](std::vector<float>& data) {
                return shunt::cuda::DeviceRows{data.data(), shunt::DType::f32, ReplayStep::kHidden * 4};
              };
              recording.capturing = true;
              auto sent = object->dispatch_send({rows(step.tokens), ReplayStep::kTokens, nullptr, &step.live},
                                                {step.ids.data(), false, 0}, nullptr);
              const auto received = object->dispatch_recv(std::move(sent), nullptr);
              auto returned = object->combine_send(received.rows, nullptr);
              object->combine_recv(std::move(returned), {step.weights.data(), 0}, rows(step.out), nullptr);
              recording.capturing = false;
            },
        .alone = {}};
    const Phase replay = {
        .each = {}, .alone = [&] {
          for (std::uint64_t number = 0; number < replays; ++number) {
            for (std::int32_t rank = 0; rank < kRanks; ++rank) {
              ReplayStep& step = steps[Ranks::at(rank)];
              machine.launch(rank, "fill", {1, 32, 0}, [&step, number, rank](shunt::emulator::Context& ctx) {
                if (ctx.thread() == 0) step.fill(number, rank, kExperts);
              });
              recordings[Ranks::at(rank)].replay();
              machine.launch(rank, "check", {1, 32, 0}, [&step, number, rank](shunt::emulator::Context& ctx) {
                if (ctx.thread() == 0) step.check(number, rank);
              });
            }
            if (number % 20 == 19 || number + 1 == replays) machine.run();
          }
          for (auto& object : objects) object->check();
        }};
    const Phase tear_down = {
        .each = [&](std::int32_t rank, shunt::Transport&) { objects[Ranks::at(rank)].reset(); },
        .alone = {},
        .always = true};
    run_phases(kRanks, {set_up, replay, tear_down});
  }
}

TEST(AllToAllGpuTest, RefusesWhatItCannotDo) {
  const auto refusal = [](const std::function<void(shunt::AllToAllConfig&)>& change) -> std::string {
    sweep::ObjectPlan object = small_object(1);
    change(object.config);
    Ranks ranks(object);
    try {
      with(ranks, [] {});
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  };
  EXPECT_EQ(refusal([](auto&) {}), "");
  EXPECT_THAT(refusal([](auto& c) { c.presum = true; }), HasSubstr("presum is not available"));
  EXPECT_THAT(refusal([](auto& c) { c.check_messages = true; }),
              HasSubstr("check_messages is not available"));
  EXPECT_THAT(refusal([](auto& c) { c.check_replicas = true; }),
              HasSubstr("check_replicas is not available"));
  EXPECT_THAT(refusal([](auto& c) { c.record_waits = true; }), HasSubstr("record_waits is not available"));
  EXPECT_THAT(refusal([](auto& c) { c.movement = shunt::Movement::push; }),
              HasSubstr("movement must be automatic"));
  EXPECT_THAT(refusal([](auto& c) { c.path = shunt::Path::flat; }), HasSubstr("path must be automatic"));
  EXPECT_THAT(refusal([](auto& c) { c.top_k = 9; }), HasSubstr("top_k is 9"));
}

TEST(AllToAllGpuTest, RefusesCallsThatDoNotFitBeforeAnythingIsLaunched) {
  Ranks ranks(small_object(1));
  with(ranks, [&] {
    shunt::cuda::AllToAll& object = ranks.members[0]->object();
    const auto refusal = [](const std::function<void()>& call) -> std::string {
      try {
        call();
      } catch (const Error& error) {
        return error.what();
      }
      return "";
    };
    oracle::Reference reference(sweep::make_step(ranks.plan, small_step(ranks.plan)));
    const sweep::StepPlan step = small_step(ranks.plan);
    StepRun run(ranks.plan, step, reference, 0);
    const auto send =
        [&](const std::function<void(shunt::cuda::TokenInput&, shunt::cuda::ExpertIds&)>& change) {
          shunt::cuda::TokenInput tokens = run.tokens();
          shunt::cuda::ExpertIds ids = run.ids();
          change(tokens, ids);
          return refusal([&] { static_cast<void>(object.dispatch_send(tokens, ids, nullptr)); });
        };
    EXPECT_THAT(send([](auto& t, auto&) { t.num_tokens = 7; }),
                HasSubstr("7 tokens; allowed are 0 to max_tokens = 6"));
    EXPECT_THAT(send([](auto& t, auto&) { t.tokens.data = nullptr; }), HasSubstr("tokens.data is null"));
    EXPECT_THAT(send([](auto& t, auto&) { t.tokens.dtype = shunt::DType::f32; }),
                HasSubstr("tokens are float32"));
    EXPECT_THAT(send([](auto& t, auto&) { t.tokens.stride_bytes = 2; }), HasSubstr("2 bytes apart"));
    EXPECT_THAT(send([](auto&, auto& i) { i.data = nullptr; }), HasSubstr("ids.data is null"));
    EXPECT_THAT(send([](auto&, auto& i) { i.row_stride = 2; }),
                HasSubstr("rows of ids are 2 apart, but 3 long"));
    EXPECT_THAT(refusal([&] { static_cast<void>(object.combine_send({}, nullptr)); }),
                HasSubstr("combine_send out of order; dispatch_send is next"));
    EXPECT_EQ(object.workspace_bytes(), shunt::cuda::alltoall_workspace_bytes(ranks.plan.config, 1));
    EXPECT_LT(object.workspace_bytes(),
              shunt::cuda::alltoall_workspace_bytes(ranks.plan.config, 1, {}, false));
    auto sent = object.dispatch_send(run.tokens(), run.ids(), nullptr);
    [[maybe_unused]] const auto taken = std::move(sent);
    EXPECT_THAT(refusal([&] { static_cast<void>(object.dispatch_recv(std::move(sent), nullptr)); }),
                HasSubstr("the receipt is used up or belongs to another AllToAll"));
    ranks.machine.run();
  });
}

/// A step of the survivors: rank `lost` brings nothing, and its experts contribute nothing.
oracle::Reference without_rank(const sweep::ObjectPlan& plan, const sweep::StepPlan& step,
                               std::int32_t lost) {
  oracle::Step all = sweep::make_step(plan, step);
  const shunt::ExpertPartition partition{plan.config.num_experts, plan.num_ranks};
  for (oracle::GroupInput& group : all.groups)
    for (std::int64_t& id : group.ids)
      if (id >= 0 && partition.owner(static_cast<std::int32_t>(id)) == lost) id = -1;
  all.groups[Ranks::at(lost)] = {};
  return oracle::Reference(all);
}

TEST(AllToAllGpuTest, GoesOnWithoutALostRank) {
  for (const bool distant : {false, true}) {
    sweep::ObjectPlan object = small_object(4);
    object.config.deadline = std::chrono::milliseconds(500);
    object.config.on_peer_loss = shunt::PeerLoss::mask;
    Ranks ranks(object, 200, distant);
    constexpr std::int32_t kLost = 2;
    std::vector<std::vector<std::int64_t>> ids;
    const auto survivors = [](std::int32_t rank) { return rank != kLost; };
    const Phase before = {.each = {}, .alone = [&] {
                            ranks.queue(small_step(ranks.plan, 1));
                            ranks.run_well();
                            EXPECT_EQ(ranks.members[0]->object().steps_completed(), 1);
                            ranks.queue(small_step(ranks.plan, 2), kLost, 2);  // lost in combine
                            ranks.machine.run();
                          }};
    const Phase agree = {.each =
                             [&](std::int32_t rank, shunt::Transport&) {
                               if (!survivors(rank)) return;
                               const auto finding = ranks.finding(rank);
                               if (!finding.has_value() || finding->code() != Errc::peer_masked)
                                 throw std::runtime_error(finding ? finding->what() : "no rank was masked");
                               EXPECT_THAT(
                                   finding->what(),
                                   HasSubstr("step 2 is to be repeated from dispatch_send, without rank "
                                             "2 (3 of 4 ranks go on)"));
                             },
                         .alone = {}};
    const Phase after = {.each = {}, .alone = [&] {
                           sweep::StepPlan step = small_step(ranks.plan, 3);
                           const oracle::Step all = sweep::make_step(ranks.plan, step);
                           step.given[kLost] = step.live[kLost] = 0;
                           ranks.steps.push_back(step);
                           ranks.references.push_back(without_rank(ranks.plan, step, kLost));
                           for (std::int32_t rank = 0; rank < ranks.plan.num_ranks; ++rank) {
                             RankRun& member = *ranks.members[Ranks::at(rank)];
                             member.runs().clear();
                             member.bring(all.groups[Ranks::at(rank)].ids);  // also the lost rank's experts
                             EXPECT_EQ(member.object().alive()[kLost], survivors(rank) ? 0 : 1);
                           }
                           ranks.queue_against(ranks.references.back(), kLost, 0);
                           ranks.machine.run();
                           for (std::int32_t rank = 0; rank < ranks.plan.num_ranks; ++rank) {
                             if (!survivors(rank)) continue;
                             ranks.members[Ranks::at(rank)]->check();
                             EXPECT_EQ(ranks.members[Ranks::at(rank)]->object().steps_completed(), 2);
                           }
                         }};
    run_phases(ranks.plan.num_ranks, {ranks.set_up(), before, agree, after, ranks.tear_down()});
  }
}

}  // namespace
}  // namespace gpu
