#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include <shunt/routing/routing.h>

namespace shunt::detail {

/// The first thing wrong with a routing, for callers that know better than check_routing where it stands in a
/// file.
struct RoutingProblem {
  enum class Field : std::uint8_t { sizes, ids, weights };
  Field field = Field::sizes;
  std::int64_t token = 0;
  std::int32_t k = 0;
  std::string what;  ///< Without position: "expert 300 is outside [-1, 255]"
};

[[nodiscard]] std::optional<RoutingProblem> find_id_problem(const Routing& routing);
[[nodiscard]] std::optional<RoutingProblem> find_weight_problem(const Routing& routing);

/// "ORIGIN: token 3, k 1: WHAT"
[[nodiscard]] std::string describe(const RoutingProblem& problem, std::string_view origin);

}  // namespace shunt::detail
