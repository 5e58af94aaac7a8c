#include "check.h"

#include <algorithm>
#include <cmath>
#include <span>

#include <fmt/format.h>

#include <shunt/core/error.h>

namespace shunt {
namespace detail {
namespace {

using Field = RoutingProblem::Field;

std::optional<RoutingProblem> find_size_problem(const Routing& routing) {
  const auto problem = [](std::string what) { return RoutingProblem{Field::sizes, 0, 0, std::move(what)}; };
  if (routing.num_experts < 1) {
    return problem(fmt::format("{} experts; at least 1 is needed", routing.num_experts));
  }
  if (routing.top_k < 1 || routing.top_k > routing.num_experts) {
    return problem(fmt::format("top-k {} is outside [1, {}], the number of experts", routing.top_k,
                               routing.num_experts));
  }
  if (routing.num_tokens < 0) return problem(fmt::format("{} tokens", routing.num_tokens));
  const auto choices = static_cast<std::size_t>(routing.num_tokens) * static_cast<std::size_t>(routing.top_k);
  if (routing.ids.size() != choices || routing.weights.size() != choices) {
    return problem(fmt::format("{} ids and {} weights; {} tokens with {} choices need {} of each",
                               routing.ids.size(), routing.weights.size(), routing.num_tokens, routing.top_k,
                               choices));
  }
  return std::nullopt;
}

}  // namespace

std::optional<RoutingProblem> find_id_problem(const Routing& routing) {
  if (auto problem = find_size_problem(routing)) return problem;
  const auto top_k = static_cast<std::size_t>(routing.top_k);
  std::vector<std::int32_t> sorted;
  for (std::int64_t token = 0; token < routing.num_tokens; ++token) {
    const auto ids = std::span(routing.ids).subspan(static_cast<std::size_t>(token) * top_k, top_k);
    for (std::size_t k = 0; k < top_k; ++k) {
      if (ids[k] < -1 || ids[k] >= routing.num_experts) {
        return RoutingProblem{Field::ids, token, static_cast<std::int32_t>(k),
                              fmt::format("expert {} is outside [-1, {}]", ids[k], routing.num_experts - 1)};
      }
    }
    sorted.clear();
    for (const std::int32_t id : ids) {
      if (id >= 0) sorted.push_back(id);
    }
    std::sort(sorted.begin(), sorted.end());
    const auto repeated = std::adjacent_find(sorted.begin(), sorted.end());
    if (repeated == sorted.end()) continue;
    const auto first = std::find(ids.begin(), ids.end(), *repeated);
    const auto second = std::find(first + 1, ids.end(), *repeated);
    return RoutingProblem{
        Field::ids, token, static_cast<std::int32_t>(second - ids.begin()),
        fmt::format("expert {} is chosen twice; the experts of a token must be distinct", *repeated)};
  }
  return std::nullopt;
}

std::optional<RoutingProblem> find_weight_problem(const Routing& routing) {
  if (auto problem = find_size_problem(routing)) return problem;
  for (std::size_t i = 0; i < routing.weights.size(); ++i) {
    if (!std::isfinite(routing.weights[i])) {
      const auto top_k = static_cast<std::size_t>(routing.top_k);
      return RoutingProblem{
          Field::weights, static_cast<std::int64_t>(i / top_k), static_cast<std::int32_t>(i % top_k),
          fmt::format("weight {} is not finite; weights are finite float32 values", routing.weights[i])};
    }
  }
  return std::nullopt;
}

std::string describe(const RoutingProblem& problem, std::string_view origin) {
  if (problem.field == Field::sizes) return fmt::format("{}: {}", origin, problem.what);
  return fmt::format("{}: token {}, k {}: {}", origin, problem.token, problem.k, problem.what);
}

}  // namespace detail

void check_routing(const Routing& routing, std::string_view origin) {
  auto problem = detail::find_id_problem(routing);
  if (!problem) problem = detail::find_weight_problem(routing);
  if (problem) throw Error(Errc::invalid_argument, detail::describe(*problem, origin));
}

}  // namespace shunt
