// What a first program with Shunt looks like: two ranks, one token each, two experts, there and back.
#include <chrono>
#include <cstdint>
#include <iostream>
#include <utility>

#include <shunt/alltoall/all_to_all.h>
#include <shunt/transport/launch.h>

namespace {

constexpr std::int64_t kHidden = 4;

int step(shunt::Transport& transport) {
  shunt::AllToAllConfig config;
  config.max_tokens = 1;
  config.num_experts = 2;
  config.top_k = 2;
  config.hidden = kHidden;
  config.token_dtype = config.payload = config.expert_dtype = config.out_dtype = shunt::DType::f32;
  config.deadline = std::chrono::seconds(20);
  shunt::AllToAll all_to_all(transport, config);

  // Rank r owns expert r and brings one token of all r + 1. Both experts are chosen, expert 0 first.
  const std::int32_t rank = transport.world().rank;
  float token[kHidden];
  for (float& element : token) element = static_cast<float>(rank + 1);
  const std::int32_t expert_ids[2] = {0, 1};
  const float weights[2] = {0.25F, 0.75F};

  shunt::TokenInput input;
  input.tokens = shunt::Rows(token, 1, kHidden, shunt::DType::f32);
  auto sent = all_to_all.dispatch_send(input, shunt::View2<const std::int32_t>(expert_ids, 1, 2));
  const shunt::Received received = all_to_all.dispatch_recv(std::move(sent));
  if (received.num_rows != 2) return 3;

  // Expert e multiplies by e + 1.
  const shunt::MutableRows results = all_to_all.expert_output();
  for (std::int64_t row = 0; row < received.num_rows; ++row) {
    const auto* in = reinterpret_cast<const float*>(received.rows.row(row));
    auto* out = reinterpret_cast<float*>(results.row(row));
    for (std::int64_t h = 0; h < kHidden; ++h) out[h] = in[h] * static_cast<float>(rank + 1);
  }
  auto returned =
      all_to_all.combine_send(shunt::Rows(results.data, received.rows.rows, kHidden, shunt::DType::f32));
  float combined[kHidden];
  all_to_all.combine_recv(std::move(returned), shunt::View2<const float>(weights, 1, 2),
                          shunt::MutableRows(combined, 1, kHidden, shunt::DType::f32));

  const float expected = static_cast<float>(rank + 1) * (0.25F * 1.0F + 0.75F * 2.0F);
  for (const float element : combined)
    if (element != expected) return 4;
  return 0;
}

}  // namespace

int main() {
  const auto outcomes = shunt::run_ranks({}, step);
  for (const shunt::RankOutcome& outcome : outcomes)
    std::cout << "rank " << outcome.rank << ": "
              << (outcome.exit_status == 0 ? "token came back as expected" : outcome.message) << '\n';
  return shunt::combined_status(outcomes);
}
