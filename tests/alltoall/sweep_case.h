#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <alltoall/oracle.h>
#include <shunt/alltoall/config.h>

/// Random cases of the sweep. A case is a pure function of its seed, so that every rank makes it for itself.
namespace sweep {

/// What dispatch_recv must do on every rank.
enum class Outcome : std::uint8_t { normal, overflow, replicas_differ };

/// How tokens choose experts.
enum class Popularity : std::uint8_t { even, skewed, all_to_one };

struct StepPlan {
  std::uint64_t stream = 0;         ///< Of the random data
  std::vector<std::int64_t> given;  ///< [G] rows handed to dispatch_send
  std::vector<std::int64_t> live;   ///< [G] of them that count
  bool use_live_tokens = false;     ///< Else live == given
  double mask_share = 0.0;
  Popularity popularity = Popularity::even;
  bool ids_64 = false;
  bool tokens_in_place = false;   ///< In token_buffer()
  bool scales_in_place = false;   ///< In token_scales()
  bool outputs_in_place = false;  ///< In expert_output()
  bool accumulate = false;
  bool any_bits = false;  ///< Tokens include infinities and NaN
  bool strided = false;   ///< Rows apart, odd start
  Outcome outcome = Outcome::normal;
  std::int32_t odd_rank = -1;  ///< replicas_differ: the member that brings something else
  bool odd_ids = false;        ///< It differs in an id, else in a token
};

struct ObjectPlan {
  std::uint64_t seed = 0;
  std::int32_t num_ranks = 1;
  shunt::AllToAllConfig config;
  std::vector<StepPlan> steps;
};

struct SweepCase {
  std::uint64_t seed = 0;
  std::int32_t num_ranks = 1;
  bool delayed = false;    ///< Also run under random delays
  std::int32_t nodes = 1;  ///< Run again as if spread over so many nodes, which reach each other by put only
  bool alone = false;      ///< In that run no rank reaches another's memory
  std::vector<ObjectPlan> objects;  ///< One, or two in flight at a time
};

/// Seeds s and t have the same number of ranks where s = t modulo 8.
[[nodiscard]] std::int32_t ranks_of(std::uint64_t seed);
[[nodiscard]] SweepCase make_case(std::uint64_t seed);

/// Everybody's live input of one step.
[[nodiscard]] oracle::Step make_step(const ObjectPlan& object, const StepPlan& step);

/// One line: what the config says, for messages.
[[nodiscard]] std::string describe(const ObjectPlan& object);

/// Names of the dimensions a case covers, such as "layout=padded", for the table of coverage.
[[nodiscard]] std::vector<std::string> features(const SweepCase& what);

}  // namespace sweep
