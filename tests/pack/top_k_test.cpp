#include <algorithm>
#include <numeric>

#include "pack_fixture.h"

namespace shunt::test {
namespace {

class TopKTest : public PackTest {};

TEST_P(TopKTest, TakesTheLargestAndTheFirstOfEquals) {
  Random random(111);
  for (int round = 0; round < 600; ++round) {
    const DType dtype = kWideDTypes.at(random.below(3));
    const std::int64_t experts = 1 + static_cast<std::int64_t>(random.below(round % 10 == 0 ? 700 : 140));
    const auto k = static_cast<std::int32_t>(
        1 + random.below(static_cast<std::uint64_t>(std::min<std::int64_t>(experts, 12))));
    const auto tokens = static_cast<std::int64_t>(random.below(6));
    GuardedBuffer logits(tokens * experts * dtype_bytes(dtype), static_cast<std::size_t>(random.below(64)));
    const bool few_values = round % 2 == 0;  // so that many are equal, among them 0 and -0
    for (std::int64_t i = 0; i < tokens * experts; ++i) {
      const float value = few_values
                              ? static_cast<float>(random.below(3)) * (random.below(2) == 0 ? -1.0F : 1.0F)
                              : static_cast<float>(random.normal());
      store_element(dtype, logits.data(), i, value);
    }
    GuardedBuffer ids(tokens * k * 4), values(tokens * k * 4);
    kernels().top_k({.logits = logits.data(),
                     .dtype = dtype,
                     .num_tokens = tokens,
                     .num_experts = experts,
                     .top_k = k,
                     .ids = reinterpret_cast<std::int32_t*>(ids.data()),
                     .values = reinterpret_cast<float*>(values.data())});
    for (std::int64_t t = 0; t < tokens; ++t) {
      std::vector<std::int32_t> order(static_cast<std::size_t>(experts));
      std::iota(order.begin(), order.end(), 0);
      const auto value = [&](std::int32_t e) { return load_element(dtype, logits.data(), t * experts + e); };
      std::stable_sort(order.begin(), order.end(),
                       [&](std::int32_t a, std::int32_t b) { return value(a) > value(b); });
      for (std::int32_t i = 0; i < k; ++i) {
        std::int32_t id = 0;
        float got = 0;
        std::memcpy(&id, ids.data() + (t * k + i) * 4, 4);
        std::memcpy(&got, values.data() + (t * k + i) * 4, 4);
        ASSERT_EQ(id, order[static_cast<std::size_t>(i)])
            << "round " << round << ", " << dtype_name(dtype) << ", E " << experts << ", choice " << i;
        ASSERT_EQ(got, value(id)) << "round " << round;
      }
    }
    ASSERT_TRUE(ids.guards_intact() && values.guards_intact()) << "round " << round;
  }
}

TEST_P(TopKTest, TakesMoreExpertsThanAVectorTableHolds) {
  std::vector<float> logits(5000, 0.0F);
  logits[4999] = 2;
  logits[4500] = 1;
  std::array<std::int32_t, 3> ids{};
  std::array<float, 3> values{};
  kernels().top_k({.logits = logits.data(),
                   .dtype = DType::f32,
                   .num_tokens = 1,
                   .num_experts = 5000,
                   .top_k = 3,
                   .ids = ids.data(),
                   .values = values.data()});
  EXPECT_EQ(ids, (std::array<std::int32_t, 3>{4999, 4500, 0}));
  EXPECT_EQ(values, (std::array<float, 3>{2, 1, 0}));
}

SHUNT_FOR_EVERY_ISA(TopKTest);

}  // namespace
}  // namespace shunt::test
