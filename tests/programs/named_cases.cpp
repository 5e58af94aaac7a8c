#include "programs/named_cases.h"

#include <algorithm>
#include <functional>
#include <utility>

#include <shunt/core/random.h>

namespace shunt::programs {
namespace {

using sweep::ObjectPlan;
using sweep::Popularity;
using sweep::StepPlan;

/// One model of the original tests: E, K, H, M and ranks of a group, as far as they divide the ranks there are.
struct Model {
  const char* name;
  std::int32_t experts;
  std::int32_t top_k;
  std::int64_t hidden;
  std::int64_t tokens;
  std::int32_t dp_size;
};

constexpr Model kTiny{"tiny", 8, 3, 16, 10, 2};         // C++ tests
constexpr Model kSmall{"small", 8, 3, 512, 10, 2};      // Python, one node
constexpr Model kMedium{"medium", 64, 4, 1024, 20, 4};  // Python, several nodes
constexpr Model kV2Lite{"v2-lite", 64, 6, 2048, 16, 1};
constexpr Model kR1{"r1", 256, 8, 7168, 4, 1};

AllToAllConfig config_of(const Model& model, std::int32_t ranks) {
  AllToAllConfig config;
  config.num_experts = model.experts;
  config.top_k = model.top_k;
  config.hidden = model.hidden;
  config.max_tokens = model.tokens;
  config.dp_size = ranks % model.dp_size == 0 ? model.dp_size : 1;
  return config;
}

void travel_as(AllToAllConfig& config, DType tokens, DType payload, ScaleType scale, DType out) {
  config.token_dtype = tokens;
  config.payload = payload;
  config.scale = scale;
  config.expert_dtype = out;
  config.out_dtype = out;
  config.scale_block = std::min<std::int64_t>(128, config.hidden);
}

class Cases {
 public:
  explicit Cases(std::int32_t ranks) : ranks_(ranks) {}

  /// Steps: some tokens of each group, as the original tests; all of them; none in some groups.
  void add(const std::string& name, const AllToAllConfig& config,
           const std::function<void(ObjectPlan&)>& change = {}) {
    for (const bool put_only : {false, true}) {
      NamedCase made{.name = name + (put_only ? "/put" : "/load-store"), .what = {}, .put_only = put_only};
      made.what.seed = ++seed_;
      made.what.num_ranks = ranks_;
      made.what.objects.push_back(object(config));
      if (change) change(made.what.objects.back());
      cases_.push_back(std::move(made));
    }
  }
  /// A second object in flight beside that of the last two cases.
  void add_second(const AllToAllConfig& config) {
    for (auto one = cases_.end() - 2; one != cases_.end(); ++one) one->what.objects.push_back(object(config));
  }
  [[nodiscard]] std::vector<NamedCase> take() { return std::move(cases_); }

 private:
  ObjectPlan object(const AllToAllConfig& config) {
    ObjectPlan plan{.seed = ++seed_, .num_ranks = ranks_, .config = config, .steps = {}};
    Random random(plan.seed);
    const auto groups = static_cast<std::size_t>(ranks_ / config.dp_size);
    const auto most = static_cast<std::uint64_t>(config.max_tokens);
    for (int at = 0; at < 3; ++at) {
      StepPlan step{.stream = random.next_u64(), .given = {}, .live = {}};
      for (std::size_t group = 0; group < groups; ++group) {
        const auto some = 1 + static_cast<std::int64_t>(random.below(most));
        step.given.push_back(at == 1 ? config.max_tokens : at == 2 && group % 2 == 0 ? 0 : some);
      }
      step.live = step.given;
      plan.steps.push_back(step);
    }
    return plan;
  }

  std::int32_t ranks_;
  std::uint64_t seed_ = 0;
  std::vector<NamedCase> cases_;
};

void add_originals(Cases& cases, std::int32_t ranks) {
  constexpr ScaleType kNone = ScaleType::none;
  AllToAllConfig config = config_of(kTiny, ranks);
  travel_as(config, DType::f32, DType::f32, kNone, DType::f32);
  cases.add("tiny/f32", config);
  travel_as(config, DType::bf16, DType::bf16, kNone, DType::bf16);
  cases.add("tiny/bf16", config);
  for (const DType out : {DType::f16, DType::bf16}) {
    const std::string to = out == DType::f16 ? "-f16" : "-bf16";
    for (const Model& model : {kSmall, kMedium}) {
      config = config_of(model, ranks);
      travel_as(config, DType::bf16, DType::bf16, kNone, out);
      cases.add(std::string(model.name) + "/bf16" + to, config);
      travel_as(config, DType::f16, DType::f16, kNone, out);
      cases.add(std::string(model.name) + "/f16" + to, config);
      travel_as(config, DType::f8e4m3, DType::f8e4m3, ScaleType::f32, out);
      cases.add(std::string(model.name) + "/fp8" + to, config);
    }
  }
}

void add_others(Cases& cases, std::int32_t ranks) {
  for (const Model& model : {kV2Lite, kR1}) {
    AllToAllConfig config = config_of(model, ranks);
    cases.add(std::string(model.name) + "/bf16", config);
    travel_as(config, DType::bf16, DType::f8e4m3, ScaleType::f32, DType::bf16);
    cases.add(std::string(model.name) + "/to-fp8", config);
  }
  const AllToAllConfig small = config_of(kSmall, ranks);
  AllToAllConfig config = small;
  travel_as(config, DType::bf16, DType::f8e4m3, ScaleType::ue8m0, DType::bf16);
  cases.add("small/to-fp8-ue8m0", config);
  config = small;
  config.delivery = Delivery::view;
  cases.add("small/view", config);
  config = small;
  config.layout = RowLayout::padded;
  config.alignment = 8;
  config.padding = PaddingRows::zero;
  cases.add("small/padded", config);
  config = small;
  config.num_experts = 4 * ranks + 3;
  config.hidden = 77;
  cases.add("odd/uneven-experts", config);
  cases.add("small/all-to-one", small, [](ObjectPlan& plan) {
    for (StepPlan& step : plan.steps) step.popularity = Popularity::all_to_one;
  });
  cases.add("small/skewed-and-skipped", small, [](ObjectPlan& plan) {
    for (StepPlan& step : plan.steps) {
      step.popularity = Popularity::skewed;
      step.mask_share = 0.3;
    }
  });
  cases.add("small/live-tokens", small, [](ObjectPlan& plan) {
    for (StepPlan& step : plan.steps) {
      step.use_live_tokens = true;
      for (std::int64_t& tokens : step.live) tokens /= 2;
    }
  });
  cases.add("small/accumulate-ids64", small, [](ObjectPlan& plan) {
    for (StepPlan& step : plan.steps) {
      step.accumulate = true;
      step.ids_64 = true;
    }
  });
  cases.add("small/two-in-flight", small);
  cases.add_second(config_of(kTiny, ranks));
}

}  // namespace

std::vector<NamedCase> named_cases(std::int32_t ranks) {
  Cases cases(ranks);
  add_originals(cases, ranks);
  add_others(cases, ranks);
  return cases.take();
}

}  // namespace shunt::programs
