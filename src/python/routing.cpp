#include <shunt/routing/routing.h>

#include <fmt/format.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <memory>
#include <utility>
#include <vector>

#include <shunt/routing/trace.h>

#include "arrays.h"
#include "errors.h"
#include "routing.h"

namespace nb = nanobind;

namespace shunt::python {
namespace {

/// A vector as an array that owns it.
template <class T>
[[nodiscard]] nb::object hand_over(std::vector<T>&& values, std::int64_t rows, std::int64_t columns) {
  auto kept = std::make_unique<std::vector<T>>(std::move(values));
  std::vector<T>* const data = kept.get();
  const nb::capsule owner(data, [](void* pointer) noexcept { delete static_cast<std::vector<T>*>(pointer); });
  static_cast<void>(kept.release());
  return show({.data = data->data(),
               .shape = {static_cast<std::size_t>(rows), static_cast<std::size_t>(columns)},
               .dtype = nb::dtype<T>(),
               .writable = true},
              false, owner);
}

[[nodiscard]] nb::tuple pair_of(Routing&& routing) {
  const std::int64_t tokens = routing.num_tokens;
  const std::int64_t top_k = routing.top_k;
  return nb::make_tuple(hand_over(std::move(routing.ids), tokens, top_k),
                        hand_over(std::move(routing.weights), tokens, top_k));
}

[[nodiscard]] nb::tuple route(const std::string& spec, std::int64_t tokens, std::int32_t groups,
                              std::int32_t experts, std::int32_t top_k, std::uint64_t seed,
                              std::int32_t group) {
  Routing routing;
  {
    const nb::gil_scoped_release release;
    const RoutingShape shape{
        .num_tokens = tokens, .num_groups = groups, .num_experts = experts, .top_k = top_k};
    routing = Router(parse_routing(spec), shape, seed).route(group);
  }
  return pair_of(std::move(routing));
}

[[nodiscard]] nb::tuple trace_of(const std::string& path) {
  Trace trace;
  {
    const nb::gil_scoped_release release;
    trace = read_trace(path);
  }
  nb::list steps;
  for (std::vector<Routing>& step : trace.steps) {
    nb::list groups;
    for (Routing& group : step) groups.append(pair_of(std::move(group)));
    steps.append(groups);
  }
  return nb::make_tuple(trace.num_experts, trace.top_k, trace.source, steps);
}

using IdMatrix = nb::ndarray<const std::int32_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using WeightMatrix = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

[[nodiscard]] Routing routing_of(nb::handle pair, std::int32_t experts) {
  const auto ids = nb::cast<IdMatrix>(pair[0]);
  const auto weights = nb::cast<WeightMatrix>(pair[1]);
  if (weights.shape(0) != ids.shape(0) || weights.shape(1) != ids.shape(1))
    refuse(fmt::format("a trace has ids [{}, {}] with weights [{}, {}]", ids.shape(0), ids.shape(1),
                       weights.shape(0), weights.shape(1)));
  return {.num_tokens = static_cast<std::int64_t>(ids.shape(0)),
          .top_k = static_cast<std::int32_t>(ids.shape(1)),
          .num_experts = experts,
          .ids = std::vector<std::int32_t>(ids.data(), ids.data() + ids.size()),
          .weights = std::vector<float>(weights.data(), weights.data() + weights.size())};
}

void save_trace(const std::string& path, std::int32_t experts, std::int32_t top_k, const std::string& source,
                const nb::list& steps) {
  Trace trace{.num_experts = experts, .top_k = top_k, .source = source, .steps = {}};
  for (const nb::handle step : steps) {
    std::vector<Routing> groups;
    for (const nb::handle group : nb::cast<nb::list>(step)) groups.push_back(routing_of(group, experts));
    trace.steps.push_back(std::move(groups));
  }
  const nb::gil_scoped_release release;
  write_trace(path, trace);
}

}  // namespace

void bind_routing(nb::module_& module) {
  module.def("route", &route, nb::arg("spec"), nb::arg("tokens"), nb::arg("groups"), nb::arg("experts"),
             nb::arg("top_k"), nb::arg("seed"), nb::arg("group"));
  module.def("read_trace", &trace_of, nb::arg("path"));
  module.def("write_trace", &save_trace, nb::arg("path"), nb::arg("experts"), nb::arg("top_k"),
             nb::arg("source"), nb::arg("steps"));
}

}  // namespace shunt::python
