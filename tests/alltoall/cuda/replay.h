#pragma once

#include <cstdint>
#include <cstring>
#include <sstream>
#include <stdexcept>
#include <vector>

#include <shunt/alltoall/config.h>
#include <shunt/core/random.h>

/// A step whose right outcome is known without an oracle, at addresses that stay: for graphs.
namespace gpu {

/// fp32 rows, experts that return what they get, weights and numbers that add up exactly.
struct ReplayStep {
  static constexpr std::int64_t kTokens = 5;
  static constexpr std::int32_t kTopK = 3;
  static constexpr std::int64_t kHidden = 24;

  std::vector<float> tokens = std::vector<float>(kTokens * kHidden);
  std::vector<std::int32_t> ids = std::vector<std::int32_t>(kTokens * kTopK);
  std::vector<float> weights = std::vector<float>(kTokens * kTopK);
  std::vector<float> out = std::vector<float>(kTokens * kHidden);
  std::int32_t live = 0;

  [[nodiscard]] static shunt::AllToAllConfig config(std::int32_t num_experts) {
    shunt::AllToAllConfig c;
    c.max_tokens = kTokens;
    c.num_experts = num_experts;
    c.top_k = kTopK;
    c.hidden = kHidden;
    c.token_dtype = c.payload = c.expert_dtype = c.out_dtype = shunt::DType::f32;
    return c;
  }

  /// Everything anew, as of replay `number` on `rank`.
  void fill(std::uint64_t number, std::int32_t rank, std::int32_t num_experts) {
    shunt::Random random(number, static_cast<std::uint64_t>(rank));
    live = static_cast<std::int32_t>(random.below(kTokens + 1));
    for (float& value : tokens) value = static_cast<float>(random.below(1000));
    for (float& weight : weights) weight = static_cast<float>(1 + random.below(3));
    for (float& value : out) value = -1;
    for (std::size_t i = 0; i < ids.size(); ++i) {
      const std::size_t first = i / kTopK * kTopK;
      bool again = true;
      while (again) {
        ids[i] = random.below(5) == 0
                     ? -1
                     : static_cast<std::int32_t>(random.below(static_cast<std::uint64_t>(num_experts)));
        again = false;
        for (std::size_t j = first; j < i; ++j) again = again || (ids[i] >= 0 && ids[j] == ids[i]);
      }
    }
  }

  void check(std::uint64_t number, std::int32_t rank) const {
    for (std::size_t t = 0; t < kTokens; ++t) {
      float weight = 0;
      for (std::size_t k = 0; k < kTopK; ++k)
        if (ids[t * kTopK + k] >= 0) weight += weights[t * kTopK + k];
      for (std::size_t h = 0; h < kHidden; ++h) {
        const float want = static_cast<std::int32_t>(t) < live ? weight * tokens[t * kHidden + h] : -1.0F;
        if (out[t * kHidden + h] == want) continue;
        std::ostringstream text;
        text << "replay " << number << ", rank " << rank << ", token " << t << " of " << live << ", element "
             << h << ": " << out[t * kHidden + h] << ", not " << want;
        throw std::runtime_error(text.str());
      }
    }
  }
};

}  // namespace gpu
