#include "rounds.h"

#include <algorithm>

namespace shunt::bench {

StepSample makespan(std::span<const RankStamps> ranks, StampClock clock) {
  StepSample sample;
  sample.inner_us.fill(-1);
  if (ranks.empty()) return sample;
  const auto span = [&](std::int64_t RankStamps::*begin, std::int64_t RankStamps::*end) {
    std::int64_t first = ranks.front().*begin;
    std::int64_t last = ranks.front().*end;
    std::int64_t longest = last - first;
    for (const RankStamps& rank : ranks) {
      first = std::min(first, rank.*begin);
      last = std::max(last, rank.*end);
      longest = std::max(longest, rank.*end - rank.*begin);
    }
    return static_cast<double>(clock == StampClock::common ? last - first : longest) / 1e3;
  };
  sample.dispatch_us = span(&RankStamps::dispatch_begin, &RankStamps::dispatch_end);
  sample.touch_us = span(&RankStamps::touch_begin, &RankStamps::touch_end);
  sample.combine_us = span(&RankStamps::combine_begin, &RankStamps::combine_end);
  sample.total_us = sample.dispatch_us + sample.touch_us + sample.combine_us;
  for (std::size_t i = 0; i < kNumInner; ++i)
    for (const RankStamps& rank : ranks)
      if (rank.inner[i] >= 0)
        sample.inner_us[i] = std::max(sample.inner_us[i], static_cast<double>(rank.inner[i]) / 1e3);
  return sample;
}

void RoundLog::add(std::size_t method, double before_ns, double after_ns,
                   const std::vector<StepSample>& samples) {
  for (const double ns : {before_ns, after_ns})
    if (ns >= 0) round_trips_ns_.push_back(ns);
  const std::string label = block_label(before_ns, after_ns, thresholds_, unprobed_);
  if (label.empty()) {
    ++dropped_;
    return;
  }
  ++kept_;
  ClassLog& log = methods_[method][label];
  ++log.rounds;
  log.samples.insert(log.samples.end(), samples.begin(), samples.end());
}

bool RoundLog::complete(const std::vector<std::size_t>& methods, std::int64_t required) const {
  for (const char* placement : {"single", "device", "network", "near", "same_l3", "far"})
    if (std::all_of(methods.begin(), methods.end(), [&](std::size_t method) {
          const auto found = methods_[method].find(placement);
          return found != methods_[method].end() && found->second.rounds >= required;
        }))
      return true;
  return false;
}

std::vector<PhaseResult> RoundLog::phases(std::size_t method, const MethodResult& shape, bool outer,
                                          bool inner) const {
  std::vector<PhaseResult> results;
  std::vector<double> values;
  for (const auto& in_class : methods_[method]) {
    const std::string& placement = in_class.first;
    const ClassLog& log = in_class.second;
    const auto add = [&](const char* phase, const auto& value) {
      values.clear();
      for (const StepSample& sample : log.samples) {
        const double us = value(sample);
        if (us >= 0) values.push_back(us);
      }
      if (values.empty()) return;
      results.push_back(
          {.placement = placement, .phase = phase, .rounds = log.rounds, .us = summarize(values)});
    };
    if (outer) {
      if (shape.has_dispatch) {
        add("dispatch", [](const StepSample& s) { return s.dispatch_us; });
        add("touch", [](const StepSample& s) { return s.touch_us; });
      }
      if (shape.has_combine) add("combine", [](const StepSample& s) { return s.combine_us; });
      // A floor's part of a step has no total.
      if (shape.has_dispatch && shape.has_combine)
        add("total", [](const StepSample& s) { return s.total_us; });
    }
    if (inner)
      for (std::size_t i = 0; i < kNumInner; ++i)
        add(inner_name(static_cast<Inner>(i)), [i](const StepSample& s) { return s.inner_us[i]; });
  }
  return results;
}

}  // namespace shunt::bench
