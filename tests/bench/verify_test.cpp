#include <cstring>
#include <vector>

#include <gtest/gtest.h>

#include <shunt/bench/verify.h>

#include "points.h"

namespace shunt::bench {
namespace {

/// Combined tokens by the definition, rounded once.
std::vector<std::byte> right_sums(const Workload& workload, std::int32_t rank) {
  const Point& point = workload.point();
  const std::int32_t group = workload.group_of(rank);
  const Routing& routing = workload.routing(group);
  std::vector<std::byte> out(static_cast<std::size_t>(routing.num_tokens * workload.out_row_bytes()));
  for (std::int64_t t = 0; t < routing.num_tokens; ++t)
    for (std::int64_t h = 0; h < point.hidden; ++h) {
      double sum = 0;
      for (std::int32_t k = 0; k < point.top_k; ++k) {
        const auto at = static_cast<std::size_t>(t * point.top_k + k);
        const float x = load_element(point.in_dtype, workload.token(group, t), h);
        sum += static_cast<double>(routing.weights[at]) *
               static_cast<double>(x * expert_factor(routing.ids[at]));
      }
      store_element(point.out_dtype, out.data() + t * workload.out_row_bytes(), h, static_cast<float>(sum));
    }
  return out;
}

TEST(VerifierTest, AcceptsRightSumsAndNamesAWrongOne) {
  const Workload workload(small_point(), nullptr);
  Verifier verifier(workload, 1);
  std::vector<std::byte> sums = right_sums(workload, 1);
  std::uint64_t hash = 0;
  EXPECT_EQ(verifier.check_combined(sums.data(), &hash), "");
  std::uint64_t changed = 0;
  float value = load_element(DType::bf16, sums.data() + 2 * workload.out_row_bytes(), 7);
  store_element(DType::bf16, sums.data() + 2 * workload.out_row_bytes(), 7, value + 0.25F);
  const std::string message = verifier.check_combined(sums.data(), &changed);
  EXPECT_NE(message.find("rank 1, token 2, element 7"), std::string::npos) << message;
  EXPECT_NE(hash, changed);
}

TEST(VerifierTest, AllowsPartialSumsOneRoundingMoreAndNobodyElse) {
  Point point = small_point();
  point.top_k = point.num_experts;
  point.out_dtype = DType::f32;
  const Workload workload(point, nullptr);
  Verifier verifier(workload, 1);
  const auto moved_by = [&](double roundings) {
    std::vector<std::byte> sums = right_sums(workload, 1);
    std::byte* const row = sums.data() + 2 * workload.out_row_bytes();
    const auto value = static_cast<double>(load_element(point.out_dtype, row, 7));
    EXPECT_NE(value, 0);
    store_element(point.out_dtype, row, 7, static_cast<float>(value * (1 + roundings * 0x1p-24)));
    return sums;
  };
  // With K = 6, 2.1 + 8 roundings are allowed to all, 3.1 + 14 to partial sums; up to two more come from storing.
  const std::vector<std::byte> partial = moved_by(13.6);
  std::uint64_t hash = 0;
  EXPECT_EQ(verifier.check_combined(partial.data(), &hash, true), "");
  EXPECT_NE(verifier.check_combined(partial.data(), &hash, false), "") << "known from the wider bound";
  EXPECT_NE(verifier.check_combined(moved_by(22).data(), &hash, true), "");
}

TEST(VerifierTest, RefusesPoison) {
  const Workload workload(small_point(), nullptr);
  Verifier verifier(workload, 0);
  const std::vector<std::byte> poison(static_cast<std::size_t>(5 * workload.out_row_bytes()),
                                      std::byte{0xff});
  std::uint64_t hash = 0;
  EXPECT_NE(verifier.check_combined(poison.data(), &hash), "");
}

ArrivedRows right_rows(const Workload& workload, std::int32_t rank) {
  ArrivedRows rows;
  const ExpertPartition& partition = workload.partition();
  for (std::int32_t expert = partition.first(rank); expert < partition.first(rank) + partition.count(rank);
       ++expert)
    for (std::int32_t group = 0; group < workload.num_groups(); ++group) {
      const Routing& routing = workload.routing(group);
      for (std::int64_t i = 0; i < routing.num_tokens * routing.top_k; ++i)
        if (routing.ids[static_cast<std::size_t>(i)] == expert)
          rows.rows.push_back(workload.token(group, i / routing.top_k));
    }
  return rows;
}

TEST(VerifierTest, ComparesRowsInOrderByteByByte) {
  const Workload workload(small_point(), nullptr);
  const Verifier verifier(workload, 0);
  ArrivedRows rows = right_rows(workload, 0);
  ASSERT_GE(rows.rows.size(), 3U);
  EXPECT_EQ(verifier.check_rows(rows), "");
  std::vector<std::byte> spoiled(rows.rows[1], rows.rows[1] + workload.row_bytes());
  spoiled.back() ^= std::byte{1};
  ArrivedRows wrong = rows;
  wrong.rows[1] = spoiled.data();
  EXPECT_NE(verifier.check_rows(wrong).find("row 1"), std::string::npos);
  ArrivedRows fewer = rows;
  fewer.rows.pop_back();
  EXPECT_NE(verifier.check_rows(fewer), "");
  ArrivedRows more = rows;
  more.rows.push_back(rows.rows[0]);
  EXPECT_NE(verifier.check_rows(more), "");
}

TEST(VerifierTest, ChecksScalesOfFp8Rows) {
  Point point = small_point();
  point.in_dtype = DType::f8e4m3;
  const Workload workload(point, nullptr);
  const Verifier verifier(workload, 0);
  ArrivedRows rows = right_rows(workload, 0);
  EXPECT_NE(verifier.check_rows(rows).find("scales"), std::string::npos);
}

TEST(HashTest, DependsOnEveryByteAndTheLength) {
  std::vector<unsigned char> bytes(21, 5);
  const std::uint64_t hash = hash_bytes(bytes.data(), 21);
  EXPECT_EQ(hash, hash_bytes(bytes.data(), 21));
  EXPECT_NE(hash, hash_bytes(bytes.data(), 20));
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    bytes[i] ^= 1U;
    EXPECT_NE(hash, hash_bytes(bytes.data(), 21)) << i;
    bytes[i] ^= 1U;
  }
}

}  // namespace
}  // namespace shunt::bench
