#include <shunt/plan/schedule.h>

#include "models.h"

namespace shunt::plan {
namespace {

ScheduleOptions sizes(std::int64_t stages, std::int64_t microbatches, const PassTimes& times,
                      std::int64_t chunks = 2) {
  ScheduleOptions options;
  options.stages = stages;
  options.microbatches = microbatches;
  options.times = times;
  options.chunks = chunks;
  return options;
}

using Peaks = std::vector<double>;

// Makespans, bubbles and peaks of an event simulation of the published orders of passes, not of these formulas.
TEST(ScheduleTest, OneForwardOneBackward) {
  for (const Pipeline pipeline : {Pipeline::gpipe, Pipeline::one_f_one_b}) {
    const ScheduleCost cost = schedule_cost(pipeline, sizes(4, 8, {1, 1, 1}));
    EXPECT_DOUBLE_EQ(cost.step, 33);
    EXPECT_DOUBLE_EQ(cost.bubble_fraction, 3.0 / 11);
    EXPECT_DOUBLE_EQ(schedule_cost(pipeline, sizes(8, 16, {1, 1, 1})).step, 69);
  }
  EXPECT_EQ(schedule_cost(Pipeline::one_f_one_b, sizes(4, 8, {1, 1, 1})).peak_microbatches,
            (Peaks{4, 3, 2, 1}));
  EXPECT_EQ(schedule_cost(Pipeline::gpipe, sizes(4, 8, {1, 1, 1})).peak_microbatches, (Peaks{8, 8, 8, 8}));
  EXPECT_DOUBLE_EQ(schedule_cost(Pipeline::one_f_one_b, sizes(1, 8, {1, 1, 1})).bubble, 0);
}

TEST(ScheduleTest, Interleaved) {
  const ScheduleCost two = schedule_cost(Pipeline::interleaved, sizes(4, 8, {1, 1, 1}, 2));
  EXPECT_DOUBLE_EQ(two.step, 28.5);
  EXPECT_DOUBLE_EQ(two.bubble, 4.5);
  EXPECT_EQ(two.peak_microbatches, (Peaks{5.5, 4.5, 3.5, 2.5}));
  const ScheduleCost four = schedule_cost(Pipeline::interleaved, sizes(4, 8, {1, 1, 1}, 4));
  EXPECT_DOUBLE_EQ(four.step, 26.25);
  EXPECT_DOUBLE_EQ(four.bubble, 2.25);
  EXPECT_EQ(four.peak_microbatches, (Peaks{4.75, 4.25, 3.75, 3.25}));
  const ScheduleCost more = schedule_cost(Pipeline::interleaved, sizes(8, 16, {1, 1, 1}, 2));
  EXPECT_DOUBLE_EQ(more.step, 58.5);
  EXPECT_DOUBLE_EQ(more.bubble, 10.5);
  EXPECT_EQ(schedule_cost(Pipeline::interleaved, sizes(4, 4, {1, 1, 1})).peak_microbatches,
            (Peaks{4, 4, 4, 4}));
}

TEST(ScheduleTest, ZeroBubble) {
  EXPECT_DOUBLE_EQ(schedule_cost(Pipeline::zb_h1, sizes(4, 8, {1, 1, 1})).step, 27);
  EXPECT_DOUBLE_EQ(schedule_cost(Pipeline::zb_h1, sizes(4, 8, {1, 1, 1})).bubble, 3);
  EXPECT_DOUBLE_EQ(schedule_cost(Pipeline::zb_h1, sizes(4, 12, {2, 2, 1})).step, 69);
  EXPECT_EQ(schedule_cost(Pipeline::zb_h1, sizes(4, 8, {1, 1, 1})).peak_microbatches, (Peaks{4, 4, 4, 4}));
  const ScheduleCost even = schedule_cost(Pipeline::zb_h2, sizes(4, 12, {1, 1, 1}));
  EXPECT_DOUBLE_EQ(even.bubble, 0);
  EXPECT_DOUBLE_EQ(even.makespan, 39);
  EXPECT_DOUBLE_EQ(even.step, 36);
  EXPECT_EQ(even.peak_microbatches[0], 7);
  const ScheduleCost uneven = schedule_cost(Pipeline::zb_h2, sizes(4, 16, {1, 1.2, 0.8}));
  EXPECT_NEAR(uneven.bubble, 1.8, 1e-12);
  EXPECT_NEAR(uneven.makespan, 51, 1e-12);
  EXPECT_DOUBLE_EQ(schedule_cost(Pipeline::zb_v, sizes(4, 8, {1, 1, 1})).step, 24);
}

TEST(ScheduleTest, DualPipe) {
  const ScheduleCost eight = schedule_cost(Pipeline::dualpipe, sizes(8, 20, {1, 1, 1, 3}));
  EXPECT_DOUBLE_EQ(eight.step, 66);
  EXPECT_DOUBLE_EQ(eight.bubble, 6);
  EXPECT_EQ(eight.peak_microbatches[3], 9);
  EXPECT_TRUE(eight.exact);
  const ScheduleCost four = schedule_cost(Pipeline::dualpipe, sizes(4, 12, {1, 1, 1, 3}));
  EXPECT_DOUBLE_EQ(four.step, 38);
  EXPECT_DOUBLE_EQ(four.bubble, 2);
  EXPECT_EQ(four.peak_microbatches[0], 5);
  const ScheduleCost overlapped = schedule_cost(Pipeline::dualpipe, sizes(8, 32, {1, 1, 1, 2}));
  EXPECT_DOUBLE_EQ(overlapped.step, 76);
  EXPECT_DOUBLE_EQ(overlapped.bubble, 3);
  // Half of the devices, each with two stages: the same step for half of the microbatches.
  const ScheduleCost folded = schedule_cost(Pipeline::dualpipev, sizes(8, 16, {1, 1, 1, 2}));
  EXPECT_EQ(folded.devices, 4);
  EXPECT_DOUBLE_EQ(folded.step, overlapped.step);
}

TEST(ScheduleTest, BoundsUnequalStages) {
  ScheduleOptions options = sizes(3, 10, {1, 1, 1});
  options.stage_forward = {1, 2, 1};
  const ScheduleCost cost = schedule_cost(Pipeline::one_f_one_b, options);
  // One unit to the second stage, ten microbatches of six, two units back.
  EXPECT_DOUBLE_EQ(cost.step, 63);
  EXPECT_DOUBLE_EQ(cost.bubble, 33);
  EXPECT_FALSE(cost.exact);
  options.stage_forward = {1, 1, 1};
  EXPECT_DOUBLE_EQ(schedule_cost(Pipeline::one_f_one_b, options).step,
                   schedule_cost(Pipeline::one_f_one_b, sizes(3, 10, {1, 1, 1})).step);
  options.stage_forward = {1, 1};
  expect_refused("2 forward times for 3 stages", [&] { (void)schedule_cost(Pipeline::gpipe, options); });
}

TEST(ScheduleTest, RefusesWhatASchedulesCannotRun) {
  const auto refused = [](const std::string& message, Pipeline pipeline, const ScheduleOptions& options) {
    expect_refused(message, [&] { (void)schedule_cost(pipeline, options); });
  };
  refused("interleaved needs microbatches that 4 stages divide, not 6", Pipeline::interleaved,
          sizes(4, 6, {}));
  refused("chunks 1: expected a number in [2, 64]", Pipeline::interleaved, sizes(4, 8, {}, 1));
  refused("zb-h1 needs at least 4 microbatches for 4 stages, not 3", Pipeline::zb_h1, sizes(4, 3, {}));
  refused("zb-h2 needs at least 7 microbatches for 4 stages, not 6", Pipeline::zb_h2, sizes(4, 6, {}));
  refused("dualpipe needs an even number of stages, not 5", Pipeline::dualpipe, sizes(5, 20, {}));
  refused("dualpipe needs an even number of microbatches, not 9", Pipeline::dualpipe, sizes(4, 9, {}));
  refused("dualpipe needs at least 8 microbatches for 4 stages, not 6", Pipeline::dualpipe, sizes(4, 6, {}));
  refused("zb-v has a closed form only where its three passes take equal time, not 1, 2 and 1",
          Pipeline::zb_v, sizes(4, 8, {1, 2, 1}));
  refused("stages 0: expected a number in [1, 4096]", Pipeline::gpipe, sizes(0, 8, {}));
  refused("forward -1: expected a time in [0, 1e+12]", Pipeline::gpipe, sizes(2, 8, {-1, 1, 1}));
  refused("all passes take no time", Pipeline::gpipe, sizes(2, 8, {0, 0, 0}));
  expect_refused(
      "schedule \"1b1f\" does not exist; did you mean \"1f1b\"? Allowed are gpipe, 1f1b, interleaved, zb-h1, "
      "zb-h2, "
      "zb-v, v-half, v-min, dualpipe, dualpipev",
      [] { (void)find_pipeline("1b1f"); });
}

TEST(ScheduleTest, ReportLeavesOutWhatCannotRun) {
  const Report report = report_schedule({}, sizes(4, 6, {1, 1, 1}));
  // Of ten, interleaved (6 microbatches), zb-h2 (7 needed) and dualpipe (8 needed) cannot.
  EXPECT_EQ(report.tables[0].rows.size(), 7U);
  EXPECT_EQ(std::get<std::string>(report.tables[0].rows[0][0]), "zb-v");
  EXPECT_EQ(report_schedule({Pipeline::one_f_one_b}, sizes(4, 6, {1, 1, 1})).tables[1].rows.size(), 4U);
}

}  // namespace
}  // namespace shunt::plan
