#pragma once

#include <string>
#include <utility>
#include <vector>

#include <shunt/scenario/model.h>

namespace shunt::scenario {

/// One run: a test at one point of its sweep, in one iteration.
struct Case {
  std::size_t test = 0;  ///< index in the scenario
  std::string id;        ///< of the test
  std::int64_t iteration = 0;
  std::int64_t step = 0;  ///< from 1 on; 0 where the test is no sweep
  std::int64_t num_nodes = 1;
  TestDefinition definition;                          ///< without sweeps: one value for each argument
  std::vector<std::pair<std::string, Scalar>> point;  ///< what the sweep chose here
  /// Folder below that of the scenario: "<id>/<iteration>" or "<id>/<iteration>/<step>".
  [[nodiscard]] std::string folder() const;
  /// "id", with "#iteration" and ".step" where there are several.
  [[nodiscard]] std::string label() const;
};

/// Ranks of a node that our own benchmarks use for a case.
[[nodiscard]] std::int64_t ranks_per_node(const Case& one, const TestEntry& entry, const System& system);

/// All runs of a scenario: its tests in their order, each with its iterations, each with the points of its sweep; of
/// these the last key changes fastest: cmd_args in their order, then variables, then the number of nodes.
/// Errors: Errc::io where a point does not fit together (experts and ranks), or there are more than 100,000 runs.
[[nodiscard]] std::vector<Case> expand(const Scenario& scenario, const System& system);

}  // namespace shunt::scenario
