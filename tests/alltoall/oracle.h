#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <utility>
#include <vector>

#include <shunt/alltoall/config.h>

/// What dispatch and combine must deliver, computed in one process from everybody's inputs: a sorted list of
/// choices and sums in double. Shares no code with the library.
namespace oracle {

using Bytes = std::vector<std::byte>;

/// What one group brings to a step.
struct GroupInput {
  std::int64_t num_tokens = 0;    ///< T
  Bytes tokens;                   ///< [T, H] dense
  Bytes scales;                   ///< [T, S], S = ceil(H / scale_block), where the tokens have some
  std::vector<std::int64_t> ids;  ///< [T, K]
  std::vector<float> weights;     ///< [T, K]
};

struct Step {
  shunt::AllToAllConfig config;
  std::int32_t num_ranks = 1;
  std::vector<GroupInput> groups;  ///< [G]
};

/// Rows one rank must receive.
struct ExpectedRows {
  std::vector<std::int64_t> starts;           ///< [L + 1]
  std::vector<std::int64_t> counts;           ///< [L]
  std::vector<std::int64_t> counts_by_group;  ///< [L, G]
  std::int64_t num_rows = 0;
  std::vector<std::int64_t> expert_of_row;  ///< [W] global expert, -1 for padding
  Bytes rows;                               ///< [W, H]; padding as PaddingRows says, 0 for untouched
  Bytes scales;                             ///< [W, S]
};

/// Combined tokens of one group.
struct ExpectedOutput {
  Bytes bits;                 ///< [T, H] of out_dtype: what the contract's arithmetic gives
  std::vector<double> sum;    ///< [T, H] the sum in double
  std::vector<double> slack;  ///< [T, H] how far from `sum` rounding may lead
};

/// The experts of the tests: writes [H] of expert_dtype from a received row. Different for every expert and
/// column.
void run_expert(const shunt::AllToAllConfig& config, std::int64_t expert, const std::byte* row,
                const std::byte* scales, std::byte* out);

class Reference {
 public:
  explicit Reference(Step step);
  [[nodiscard]] const Step& step() const { return step_; }
  [[nodiscard]] ExpectedRows received(std::int32_t rank);
  /// `old` [T, H] of out_dtype is the start of the sum with accumulation; null: 0.
  [[nodiscard]] ExpectedOutput combined(std::int32_t group, const std::byte* old);
  /// Rows that arrive at each rank, padding not counted: [R].
  [[nodiscard]] std::vector<std::int64_t> arrivals() const;

 private:
  struct Choice {
    std::int64_t expert, group, token;
    auto operator<=>(const Choice&) const = default;
  };
  struct Wire {
    Bytes row, scales;
  };
  /// A token as it travels: as it is, or quantised.
  const Wire& wire(std::int64_t group, std::int64_t token);

  Step step_;
  std::vector<std::int32_t> owner_;  ///< [E]
  std::vector<Choice> choices_;      ///< Sorted by expert, group, token
  std::map<std::pair<std::int64_t, std::int64_t>, Wire> wires_;
};

}  // namespace oracle
