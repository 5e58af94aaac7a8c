// What the calls of <shunt/pack/cuda.h> refuse, and what they say. No call here reaches a device.
#include <gmock/gmock.h>

#include <functional>

#include <shunt/core/error.h>
#include <shunt/pack/cuda.h>

#include "pack/cuda/known_blocks.h"
#include "pack/cuda/plan_sizes.h"
#include "pack/pack_fixture.h"

namespace shunt::test {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

/// An address that nobody follows.
void* somewhere(std::uintptr_t offset = 0) {
  return reinterpret_cast<void*>(std::uintptr_t{0x10000} + offset);
}

std::string refusal(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Errc::invalid_argument) << error.what();
    return error.what();
  }
  return "nothing";
}

struct PlanCall {
  cuda::PlanInput input{
      .selections = {.ids = somewhere(), .num_tokens = 4, .top_k = 2}, .num_experts = 8, .max_rows = 8};
  cuda::Plan plan{.counts = static_cast<std::int32_t*>(somewhere()),
                  .starts = static_cast<std::int32_t*>(somewhere()),
                  .positions = static_cast<std::int32_t*>(somewhere()),
                  .selections = nullptr,
                  .status = static_cast<cuda::PlanStatus*>(somewhere())};
  void* workspace = somewhere();
  cuda::LaunchLimit limit;
  [[nodiscard]] std::string refused() const {
    return refusal([this] { cuda::make_plan(input, plan, workspace, nullptr, limit); });
  }
};

TEST(PackCudaLimitsTest, PlanNamesWhatItCannotTake) {
  const auto with = [](const std::function<void(PlanCall&)>& change) {
    PlanCall call;
    change(call);
    return call.refused();
  };
  EXPECT_THAT(with([](PlanCall& c) { c.input.selections.num_tokens = -1; }), HasSubstr("num_tokens is -1"));
  EXPECT_THAT(with([](PlanCall& c) { c.input.selections.top_k = 0; }), HasSubstr("top_k is 0"));
  EXPECT_THAT(with([](PlanCall& c) { c.input.num_experts = 0; }), HasSubstr("num_experts is 0"));
  EXPECT_THAT(with([](PlanCall& c) { c.input.alignment = 0; }), HasSubstr("alignment is 0"));
  EXPECT_THAT(with([](PlanCall& c) { c.input.rows_per_expert = 3; }),
              AllOf(HasSubstr("max_rows is 8"), HasSubstr("8 experts of 3 rows need 24")));
  EXPECT_THAT(with([](PlanCall& c) { c.input.selections.num_tokens = 1 << 30; }),
              HasSubstr("selections that one call"));
  EXPECT_THAT(with([](PlanCall& c) { c.input.alignment = 1 << 30; }),
              HasSubstr("may number more than 2147483647 rows"));
  EXPECT_THAT(with([](PlanCall& c) { c.input.max_rows = INT64_C(1) << 32; }),
              HasSubstr("may number more than"));
  EXPECT_THAT(with([](PlanCall& c) { c.input.selections.ids = nullptr; }), HasSubstr("ids is null"));
  EXPECT_THAT(with([](PlanCall& c) { c.plan.positions = nullptr; }), HasSubstr("positions is null"));
  EXPECT_THAT(with([](PlanCall& c) { c.plan.status = nullptr; }), HasSubstr("status is null"));
  EXPECT_THAT(with([](PlanCall& c) { c.workspace = somewhere(8); }), HasSubstr("multiple of 16 bytes"));
  EXPECT_THAT(with([](PlanCall& c) { c.limit.max_blocks = -1; }), HasSubstr("max_blocks is -1"));
}

cuda::Gather some_gather() {
  cuda::Gather g;
  g.from = {somewhere(), DType::bf16, 256};
  g.positions = static_cast<const std::int32_t*>(somewhere());
  g.num_tokens = 4;
  g.top_k = 2;
  g.hidden = 128;
  g.to = {somewhere(), DType::f8e4m3, 128};
  g.scales = {.data = somewhere(), .type = ScaleType::f32};
  return g;
}

TEST(PackCudaLimitsTest, GatherNamesWhatItCannotTake) {
  const auto with = [](const std::function<void(cuda::Gather&)>& change) {
    cuda::Gather g = some_gather();
    change(g);
    return refusal([&] { cuda::gather(g, nullptr); });
  };
  EXPECT_THAT(with([](cuda::Gather& g) { g.hidden = 129; }),
              AllOf(HasSubstr("rows of from are 256 bytes apart"), HasSubstr("258")));
  EXPECT_THAT(with([](cuda::Gather& g) { g.from.stride_bytes = 257; }), HasSubstr("257 bytes apart"));
  EXPECT_THAT(with([](cuda::Gather& g) { g.from.data = somewhere(1); }), HasSubstr("from is at 0x10001"));
  EXPECT_THAT(with([](cuda::Gather& g) { g.to.data = nullptr; }), HasSubstr("to is null"));
  EXPECT_THAT(with([](cuda::Gather& g) { g.positions = nullptr; }), HasSubstr("positions is null"));
  EXPECT_THAT(with([](cuda::Gather& g) { g.scales.block = 0; }), HasSubstr("block is 0"));
  EXPECT_THAT(with([](cuda::Gather& g) { g.scales.data = somewhere(2); }), HasSubstr("scales is at"));
  EXPECT_THAT(with([](cuda::Gather& g) {
                g.scales.layout = cuda::ScaleLayout::column_major;
                g.scales.stride = 6;
              }),
              HasSubstr("6 rows apart"));
  EXPECT_THAT(with([](cuda::Gather& g) {
                g.scales.layout = cuda::ScaleLayout::column_major;
                g.scales.stride = 8;
                g.scales.matrix_rows = 9;
              }),
              HasSubstr("the 9 rows of a matrix"));
  EXPECT_THAT(with([](cuda::Gather& g) { g.from.dtype = DType::f8e5m2; }),
              HasSubstr("float8_e5m2 does not become float8_e4m3fn"));
  EXPECT_THAT(with([](cuda::Gather& g) {
                g.to = {somewhere(), DType::f32, 512};
              }),
              HasSubstr("belong to fp8 rows"));
  EXPECT_THAT(with([](cuda::Gather& g) { g.from = g.to; }), HasSubstr("type or block differs"));
}

TEST(PackCudaLimitsTest, ScatterAndCombineNameWhatTheyCannotTake) {
  cuda::Scatter s;
  s.from = s.to = {somewhere(), DType::bf16, 256};
  s.destinations = static_cast<const std::int32_t*>(somewhere());
  s.num_rows = 3;
  s.hidden = 128;
  const auto scatter = [&] { return refusal([&] { cuda::scatter(s, nullptr); }); };
  s.to.dtype = DType::f16;
  EXPECT_THAT(scatter(), HasSubstr("rows of bfloat16 cannot go to rows of float16"));
  s.to.dtype = DType::bf16;
  s.destinations = nullptr;
  EXPECT_THAT(scatter(), HasSubstr("destinations is null"));

  cuda::Combine c;
  c.rows = {somewhere(), DType::f8e4m3, 256};
  c.out = {somewhere(), DType::bf16, 256};
  c.num_tokens = 2;
  c.hidden = 128;
  const auto combine = [&] { return refusal([&] { cuda::combine(c, nullptr); }); };
  EXPECT_THAT(combine(), HasSubstr("not float8_e4m3fn"));
  c.rows.dtype = DType::bf16;
  EXPECT_THAT(combine(), HasSubstr("positions is null"));
  c.positions = static_cast<const std::int32_t*>(somewhere());
  EXPECT_THAT(combine(), HasSubstr("weights is null"));
}

TEST(PackCudaLimitsTest, SaysWhyWhereThereIsNoDevice) {
  const std::string reason = cuda::unavailable_reason();
  if (reason.empty()) GTEST_SKIP() << "there is a CUDA device here";
  try {
    cuda::gather(some_gather(), nullptr);
    FAIL() << "gather did not refuse";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Errc::unavailable);
    EXPECT_THAT(error.what(), HasSubstr("CUDA"));
  }
}

TEST(PackCudaLimitsTest, ScaleBuffersHoldTheirColumns) {
  cuda::Scales scales{.type = ScaleType::f32};
  EXPECT_EQ(cuda::scale_buffer_bytes(scales, 10, 300), 10 * 3 * 4);
  scales.layout = cuda::ScaleLayout::column_major;
  scales.stride = 12;
  EXPECT_EQ(cuda::scale_buffer_bytes(scales, 10, 300), 3 * 12 * 4);
  scales.type = ScaleType::ue8m0;
  EXPECT_EQ(cuda::scale_buffer_bytes(scales, 10, 128 * 5), 2 * 12 * 4);
  scales.matrix_rows = 12;
  EXPECT_EQ(cuda::scale_buffer_bytes(scales, 25, 128 * 5), 3 * 2 * 12 * 4);
  scales.type = ScaleType::none;
  EXPECT_EQ(cuda::scale_buffer_bytes(scales, 25, 128 * 5), 0);
}

TEST(PackCudaLimitsTest, UnitsCoverEverySelectionWithinTheirNumber) {
  for (const std::int64_t tokens : {0, 1, 7, 1024, 4096, 8193, 1 << 27}) {
    cuda::PlanInput input{.selections = {.ids = somewhere(), .num_tokens = tokens, .top_k = 8},
                          .num_experts = 3};
    const cuda::detail::PlanSizes sizes(input);
    EXPECT_LE(sizes.num_units, cuda::detail::kMaxUnits);
    EXPECT_GE(std::int64_t{sizes.unit} * sizes.num_units, tokens * 8);
    EXPECT_EQ(sizes.unit % 32, 0);
    EXPECT_GE(cuda::plan_workspace_bytes(input), std::int64_t{sizes.num_units} * (3 + 1) * 4);
  }
}

TEST(KnownBlocksTest, AsksOnceForEachSizeThatItKeeps) {
  cuda::detail::KnownBlocks known;
  std::int32_t asked = 0;
  const auto find = [&](std::int32_t shared_bytes) {
    return known.find(shared_bytes, [&] {
      ++asked;
      return 1 + shared_bytes / 1024;
    });
  };
  constexpr std::int32_t kKept = cuda::detail::KnownBlocks::kKept;
  for (std::int32_t round = 0; round < 2; ++round)
    for (std::int32_t i = 0; i < kKept; ++i) EXPECT_EQ(find(i * 1024), 1 + i);
  EXPECT_EQ(asked, kKept);
  EXPECT_EQ(find(kKept * 1024), 1 + kKept) << "one size too many is answered all the same";
  EXPECT_EQ(find(kKept * 1024), 1 + kKept);
  EXPECT_EQ(asked, kKept + 2);
}

}  // namespace
}  // namespace shunt::test
