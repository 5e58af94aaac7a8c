// AllToAll on a GPU with much of it queued before anybody looks, and with memory beyond what 32 bits count. Ranks are
// threads that share the GPU. Skipped with the reason where there is none.
#include <cuda_runtime_api.h>

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <shunt/alltoall/cuda.h>
#include <shunt/core/error.h>

#include "gpu_member.h"
#include "gpu_memory.h"
#include "phases.h"

namespace gpu {
namespace {

using testing::HasSubstr;
using Members = std::vector<std::unique_ptr<Member>>;

std::size_t at(std::int64_t i) {
  return static_cast<std::size_t>(i);
}

/// Every rank queues all its steps, one rank after the other; then `look`, when all is done.
void fly(std::int32_t num_ranks, std::int32_t num_objects, std::int32_t num_steps,
         const std::function<void(Members&)>& prepare, const std::function<void(Members&)>& look) {
  Members members(at(num_ranks));
  run_phases(num_ranks,
             {{.each =
                   [&](std::int32_t rank, shunt::Transport& transport) {
                     members[at(rank)] = std::make_unique<Member>(transport, num_objects, num_steps);
                   },
               .alone = {}},
              {.each = {},
               .alone =
                   [&] {
                     prepare(members);
                     for (auto& member : members) member->queue();
                     for (auto& member : members) member->finish();
                     look(members);
                     for (auto& member : members) member->check_outputs();
                   }},
              {.each = [&](std::int32_t rank, shunt::Transport&) { members[at(rank)].reset(); },
               .alone = {},
               .always = true}},
             "cuda_ipc");
}

void nothing(Members& /*members*/) {}

TEST(AllToAllCudaGpuFlightTest, Queues20StepsAheadOfTheSlowestRank) {
  if (const std::string reason = missing(); !reason.empty()) GTEST_SKIP() << reason;
  fly(4, 1, 20, nothing, [](Members& members) {
    for (auto& member : members) member->object(0).check();
  });
}

TEST(AllToAllCudaGpuFlightTest, KeepsTwoObjectsInFlightOnOneStream) {
  if (const std::string reason = missing(); !reason.empty()) GTEST_SKIP() << reason;
  fly(4, 2, 6, nothing, [](Members& members) {
    for (auto& member : members)
      for (const std::size_t object : {0, 1}) member->object(object).check();
  });
}

TEST(AllToAllCudaGpuFlightTest, VoidsAStepAmongOthersOnEveryRank) {
  if (const std::string reason = missing(); !reason.empty()) GTEST_SKIP() << reason;
  constexpr std::size_t kVoid = 1;
  fly(
      3, 1, 4,
      [](Members& members) {
        SharedStep& memory = members[1]->memory(kVoid, 0);
        memory.step.live = ReplayStep::kTokens;
        memory.step.ids[4] = Member::kExperts + 3;
        memory.show();
      },
      [](Members& members) {
        for (auto& member : members) {
          const auto found = member->finding();
          if (!found.has_value()) throw std::runtime_error("no error, although rank 1 brought an id outside");
          EXPECT_EQ(found->code(), shunt::Errc::invalid_argument);
          EXPECT_THAT(found->what(),
                      HasSubstr("dispatch step 2: rank 1 brought token 1, k 1: expert id 12 is outside"));
          EXPECT_NO_THROW(member->object(0).check());
          member->memory(kVoid, 0).step.live = 0;  // so that nothing of its output may have been written
        }
      });
}

TEST(AllToAllCudaGpuFlightTest, GoesOnWithoutARankThatStopped) {
  if (const std::string reason = missing(); !reason.empty()) GTEST_SKIP() << reason;
  static constexpr std::int32_t kRanks = 3;
  static constexpr std::int32_t kLost = 2;
  static constexpr std::size_t kDone = 2;  // steps of all; one more is begun without the lost rank
  shunt::AllToAllConfig config = ReplayStep::config(Member::kExperts);
  config.on_peer_loss = shunt::PeerLoss::mask;
  config.deadline = std::chrono::seconds(2);
  Members members(kRanks);
  const auto survivors = [&](const std::function<void(Member&)>& body) {
    for (std::int32_t rank = 0; rank < kRanks; ++rank)
      if (rank != kLost) body(*members[at(rank)]);
  };
  run_phases(kRanks,
             {{.each =
                   [&](std::int32_t rank, shunt::Transport& transport) {
                     members[at(rank)] = std::make_unique<Member>(transport, 1, kDone + 1, config);
                   },
               .alone = {}},
              {.each = {},
               .alone =
                   [&] {
                     for (auto& member : members) member->queue(0, kDone);
                     for (auto& member : members) member->finish();
                     for (auto& member : members) member->check_outputs(0, kDone);
                     survivors([](Member& member) { member.queue(kDone, kDone + 1); });
                     survivors([](Member& member) { member.finish(); });
                   }},
              {.each =
                   [&](std::int32_t rank, shunt::Transport&) {
                     if (rank == kLost) return;
                     const auto found = members[at(rank)]->finding();
                     if (!found.has_value() || found->code() != shunt::Errc::peer_masked)
                       throw std::runtime_error("rank " + std::to_string(rank) + ": " +
                                                (found ? found->what() : "nobody was masked"));
                     EXPECT_THAT(found->what(),
                                 HasSubstr("step 3 is to be repeated from dispatch_send, without "
                                           "rank 2 (2 of 3 ranks go on)"));
                   },
               .alone = {}},
              {.each = {},
               .alone =
                   [&] {
                     survivors([](Member& member) { member.queue(kDone, kDone + 1); });
                     survivors([](Member& member) { member.finish(); });
                     survivors([](Member& member) {
                       member.object(0).check();
                       EXPECT_EQ(member.object(0).alive()[kLost], 0);
                       EXPECT_EQ(member.object(0).steps_completed(), 3);
                       // Experts of the lost rank contribute nothing.
                       for (std::int32_t& id : member.memory(kDone, 0).step.ids)
                         if (id >= kLost * Member::kExperts / kRanks) id = -1;
                       member.check_outputs(kDone, kDone + 1);
                     });
                   }},
              {.each = [&](std::int32_t rank, shunt::Transport&) { members[at(rank)].reset(); },
               .alone = {},
               .always = true}},
             "cuda_ipc");
}

/// Device memory, zeroed.
class Zeroed {
 public:
  explicit Zeroed(std::int64_t bytes) {
    require(cudaMalloc(&data_, at(bytes)));
    require(cudaMemset(data_, 0, at(bytes)));
    require(cudaStreamSynchronize(nullptr));
  }
  ~Zeroed() { cudaFree(data_); }
  Zeroed(const Zeroed&) = delete;
  Zeroed& operator=(const Zeroed&) = delete;
  template <class T>
  [[nodiscard]] T* get() const {
    return static_cast<T*>(data_);
  }
  template <class T>
  void write(std::int64_t first, const std::vector<T>& from) const {
    require(cudaMemcpy(get<T>() + first, from.data(), from.size() * sizeof(T), cudaMemcpyHostToDevice));
    require(cudaStreamSynchronize(nullptr));
  }
  template <class T>
  [[nodiscard]] std::vector<T> read(std::int64_t first, std::int64_t count) const {
    std::vector<T> to(at(count));
    require(cudaMemcpy(to.data(), get<T>() + first, to.size() * sizeof(T), cudaMemcpyDeviceToHost));
    return to;
  }

 private:
  void* data_ = nullptr;
};

/// Few tokens of many: the first two and the last go to experts, and lie, land and return more than 2^31 bytes apart.
struct FarRank {
  static constexpr std::int64_t kTokens = 40'000;
  static constexpr std::int64_t kHidden = 16'384;
  static constexpr std::int64_t kSent[] = {0, 1, kTokens - 1};
  static constexpr std::int64_t kRowsBytes = kTokens * kHidden * 4;
  static_assert(kRowsBytes - kHidden * 4 > std::int64_t{1} << 31);

  [[nodiscard]] static shunt::AllToAllConfig config() {
    shunt::AllToAllConfig c;
    c.max_tokens = kTokens;
    c.max_recv_rows = 64;
    c.num_experts = 2;
    c.top_k = 1;
    c.hidden = kHidden;
    c.token_dtype = c.payload = c.expert_dtype = c.out_dtype = shunt::DType::f32;
    return c;
  }
  [[nodiscard]] static shunt::cuda::AllToAllOptions options() {
    return {.limit = {}, .expert_output = false};
  }
  [[nodiscard]] std::vector<float> row(std::int64_t token) const {
    std::vector<float> values;
    for (std::int64_t h = 0; h < kHidden; ++h)
      values.push_back(static_cast<float>((token + 31 * rank + h) % 1000 + 1));
    return values;
  }

  explicit FarRank(shunt::Transport& transport)
      : rank(transport.world().rank),
        object(transport, config(), options()),
        tokens(kRowsBytes),
        out(kRowsBytes),
        ids(kTokens * 4),
        weights(kTokens * 4) {
    std::vector<std::int32_t> chosen(at(kTokens), -1);
    for (const std::int64_t token : kSent) {
      chosen[at(token)] = static_cast<std::int32_t>((token + rank) % 2);
      tokens.write(token * kHidden, row(token));
      out.write(token * kHidden, std::vector<float>(at(kHidden), -1));
    }
    ids.write(0, chosen);
    weights.write(0, std::vector<float>(at(kTokens), 2));
  }
  void queue() {
    const auto rows = [](const Zeroed& memory) {
      return shunt::cuda::DeviceRows{memory.get<void>(), shunt::DType::f32, kHidden * 4};
    };
    auto sent = object.dispatch_send({rows(tokens), kTokens}, {ids.get<void>()}, stream.get());
    const auto received = object.dispatch_recv(std::move(sent), stream.get());
    auto returned = object.combine_send(received.rows, stream.get());
    object.combine_recv(std::move(returned), {weights.get<float>()}, rows(out), stream.get());
  }
  void check() {
    require(cudaStreamSynchronize(stream.get()));
    object.check();
    for (const std::int64_t token : kSent) {
      std::vector<float> wanted = row(token);
      for (float& value : wanted) value *= 2;
      if (out.read<float>(token * kHidden, kHidden) != wanted)
        throw std::runtime_error("rank " + std::to_string(rank) + ": token " + std::to_string(token) +
                                 " came back wrong");
    }
  }

  std::int32_t rank;
  OwnStream stream;
  shunt::cuda::AllToAll object;
  Zeroed tokens, out, ids, weights;
};

TEST(AllToAllCudaGpuFlightTest, ReachesRowsBeyond2GiB) {
  if (const std::string reason = missing(); !reason.empty()) GTEST_SKIP() << reason;
  constexpr std::int32_t kRanks = 2;
  const std::int64_t workspace =
      shunt::cuda::alltoall_workspace_bytes(FarRank::config(), kRanks, FarRank::options());
  const std::int64_t needed = kRanks * (workspace + 2 * FarRank::kRowsBytes) + (std::int64_t{1} << 30);
  std::size_t free = 0;
  std::size_t total = 0;
  require(cudaMemGetInfo(&free, &total));
  if (static_cast<std::int64_t>(free) < needed)
    GTEST_SKIP() << needed << " bytes of GPU memory are needed, " << free << " are free";
  std::vector<std::unique_ptr<FarRank>> ranks(kRanks);
  run_phases(
      kRanks,
      {{.each = [&](std::int32_t rank,
                    shunt::Transport& transport) { ranks[at(rank)] = std::make_unique<FarRank>(transport); },
        .alone = {}},
       {.each = {},
        .alone =
            [&] {
              for (auto& rank : ranks) rank->queue();
              for (auto& rank : ranks) rank->check();
            }},
       {.each = [&](std::int32_t rank, shunt::Transport&) { ranks[at(rank)].reset(); },
        .alone = {},
        .always = true}},
      "cuda_ipc");
}

}  // namespace
}  // namespace gpu
