#include "matrices.h"

#include <vector>

#include <fmt/format.h>

#include <shunt/layout/partition.h>
#include <shunt/routing/routing.h>
#include <shunt/scenario/generate.h>

namespace shunt::scenario {
namespace {

/// Bytes of a row on its way: the payload, and with fp8 a scale of four bytes for each 128 elements.
std::int64_t row_bytes(const TestDefinition& test, std::int64_t hidden) {
  constexpr std::int64_t kScaleBlock = 128;
  return test.text("data_type") == "fp8" ? hidden + (hidden + kScaleBlock - 1) / kScaleBlock * 4 : hidden * 2;
}

using Matrix = std::vector<std::vector<std::int64_t>>;

std::string lines_of(const Matrix& cells, const char* between, std::int64_t unit) {
  std::string text;
  for (const std::vector<std::int64_t>& row : cells) {
    for (std::size_t i = 0; i < row.size(); ++i)
      text += fmt::format("{}{}", i == 0 ? "" : between, row[i] / unit);
    text += "\n";
  }
  return text;
}

}  // namespace

void write_matrices(const Case& one, std::int64_t ranks, const std::string& folder) {
  const TestDefinition& test = one.definition;
  const bool scripts = test.workload == Workload::deepep_scripts;
  const std::int64_t hidden = test.whole(scripts ? "hidden" : "hidden_size", 0);
  const RoutingShape shape{.num_tokens = test.whole(scripts ? "num_tokens" : "tokens", 0),
                           .num_groups = static_cast<std::int32_t>(ranks),
                           .num_experts = static_cast<std::int32_t>(test.whole("num_experts", 0)),
                           .top_k = static_cast<std::int32_t>(test.whole("num_topk", 0))};
  // The benchmark's defaults: local_command sets neither --routing nor --seed.
  const Router router(parse_routing("uniform"), shape, 1);
  const ExpertPartition partition{.num_experts = shape.num_experts,
                                  .num_ranks = static_cast<std::int32_t>(ranks)};
  const auto size = static_cast<std::size_t>(ranks);
  Matrix rows(size, std::vector<std::int64_t>(size, 0));
  std::string experts;
  for (std::int32_t rank = 0; rank < shape.num_groups; ++rank) {
    const Routing routing = router.route(rank);
    for (std::size_t i = 0; i < routing.ids.size(); ++i) {
      const bool last = (i + 1) % static_cast<std::size_t>(shape.top_k) == 0;
      experts += fmt::format("{}{}", routing.ids[i], last ? "\n" : " ");
      if (routing.ids[i] >= 0)
        ++rows[static_cast<std::size_t>(rank)][static_cast<std::size_t>(partition.owner(routing.ids[i]))];
    }
  }
  Matrix bytes = rows;
  for (std::vector<std::int64_t>& row : bytes)
    for (std::int64_t& cell : row) cell *= row_bytes(test, hidden);
  constexpr std::int64_t kKilobyte = 1000;
  constexpr std::int64_t kInt32 = 4;
  write_file(folder + "/token_matrix.txt", experts);
  write_file(folder + "/token_matrix_kb.txt", lines_of(bytes, " ", kKilobyte));
  write_file(folder + "/nccl_matrix.txt", lines_of(bytes, " ", 1));
  write_file(
      folder + "/ucc_matrix.txt",
      fmt::format("[format]\nversion = 1.0\ndescription = {} of shunt\n\n[collective]\ntype = ALLTOALLV\n"
                  "team_size = {}\ndatatype = INT32\nflags = COUNT_32BIT\ncounts = {{\n{}}}\n",
                  one.definition.template_name, ranks, lines_of(bytes, ", ", kInt32)));
}

}  // namespace shunt::scenario
