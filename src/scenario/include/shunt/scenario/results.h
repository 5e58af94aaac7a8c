#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <shunt/scenario/plan.h>

namespace shunt::scenario {

/// One line of results. Nothing where a value does not exist, such as the bandwidth of a link that is not there.
using Row = std::vector<std::pair<std::string, std::optional<Scalar>>>;

enum class Status { passed, failed, skipped, interrupted, not_run };

[[nodiscard]] const char* status_name(Status status) noexcept;

/// How a run ended; case.json in its folder.
struct Finished {
  std::string label;
  std::string id;
  std::int64_t iteration = 0;
  std::int64_t step = 0;
  std::string name;  ///< of the test
  std::string template_name;
  std::string folder;       ///< below that of the scenario
  std::string fingerprint;  ///< of what was run: a run of another definition does not count
  Status status = Status::not_run;
  std::string reason;
  std::int64_t exit_code = -1;
  double elapsed_s = 0;
  std::vector<std::pair<std::string, Scalar>> point;
  std::vector<Row> rows;
};

/// The objects of a JSON array, of one object, or of JSON Lines; values that are no scalars are left out.
/// Errors: Errc::io with `name` and the line.
[[nodiscard]] std::vector<Row> parse_rows(std::string_view text, const std::string& name);

/// The results that a run left in its folder, and what it makes of them: for the EP benchmarks of CloudAI also
/// benchmark_<ranks>_ranks_<stamp>_<mode>/results.json where our own benchmark ran.
/// Errors: Errc::io where a file of results cannot be read.
[[nodiscard]] std::vector<Row> collect_rows(const Case& one, const TestEntry& entry, const System& system,
                                            const std::string& folder, const std::string& stamp);

/// Why the results do not pass; empty where they do. Looks at what the test expects, and for nccl-tests at its output.
[[nodiscard]] std::string judge(const Case& one, const std::vector<Row>& rows, const std::string& folder);

/// A hash of everything that decides what a run does.
[[nodiscard]] std::string fingerprint(const Case& one, const TestEntry& entry);

void write_case(const std::string& folder, const Finished& run);
/// The run of a folder; nothing where it has no case.json. Errors: Errc::io where that is malformed.
[[nodiscard]] std::optional<Finished> read_case(const std::string& folder);

/// What a whole campaign shows.
struct Summary {
  std::string scenario;
  std::string system;
  std::string started;  ///< UTC, 2026-01-02T03:04:05Z
  std::vector<Finished> runs;
  [[nodiscard]] bool passed() const noexcept;
};

/// Writes summary.json, results.csv, junit.xml and <scenario>.html into the folder of a campaign, and
/// cloudai_<test>_report.csv into those of its runs that have rows.
void write_reports(const std::string& folder, const Summary& summary);

/// The campaign that a folder holds. Errors: Errc::io where it has no summary.json.
[[nodiscard]] Summary read_campaign(const std::string& folder);

}  // namespace shunt::scenario
