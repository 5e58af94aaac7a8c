#include <algorithm>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <shunt/bench/transport_bench.h>

namespace shunt::bench {
namespace {

constexpr const char* kColumns[] = {"op",     "transport", "bytes",  "messages", "median_us",
                                    "p90_us", "p99_us",    "min_us", "gb_per_s", "busbw_gb_per_s",
                                    "#wrong", "placement", "rounds"};

using Cells = std::vector<std::string>;

std::string time_text(double us) {
  return us < 10     ? fmt::format("{:.3f}", us)
         : us < 1000 ? fmt::format("{:.2f}", us)
                     : fmt::format("{:.1f}", us);
}

Cells cells_of(const TransportRow& row, bool checked) {
  return {row.op,
          row.method,
          fmt::format("{}", row.bytes),
          fmt::format("{}", row.messages),
          time_text(row.us.median),
          time_text(row.us.p90),
          time_text(row.us.p99),
          time_text(row.us.min),
          row.bytes == 0 ? "-" : fmt::format("{:.3f}", row.gb_per_s),
          row.busbw_gb_per_s < 0 || row.bytes == 0 ? "-" : fmt::format("{:.3f}", row.busbw_gb_per_s),
          !checked ? "N/A" : fmt::format("{}", row.wrong),
          row.placement,
          fmt::format("{}", row.rounds)};
}

bool same_series(const TransportRow& a, const TransportRow& b) {
  return a.op == b.op && a.bytes == b.bytes && a.method == b.method;
}

/// Rows of the class with most rounds of each series, which lie behind one another.
std::vector<const TransportRow*> main_rows(const std::vector<TransportRow>& rows) {
  std::vector<const TransportRow*> chosen;
  for (const TransportRow& row : rows) {
    if (chosen.empty() || !same_series(*chosen.back(), row))
      chosen.push_back(&row);
    else if (row.rounds > chosen.back()->rounds)
      chosen.back() = &row;
  }
  return chosen;
}

std::string describe(const TransportWorld& world) {
  std::string text = fmt::format("# {}: {} rank{} on {} node{}", world.transport, world.ranks,
                                 world.ranks == 1 ? "" : "s", world.nodes, world.nodes == 1 ? "" : "s");
  if (world.pair_peer > 0)
    text += fmt::format("; puts and signals between rank 0 and rank {} ({})", world.pair_peer,
                        world.pair_node == 0 ? "one node" : "two nodes");
  text += world.clock == StampClock::common ? "; times from the first rank's begin to the last rank's end"
                                            : "; times of the slowest rank (the ranks' clocks differ)";
  return text + "\n";
}

std::string header(const TransportBenchReport& report, const TransportBenchOptions& options,
                   const std::vector<std::string>& command) {
  std::string text = fmt::format("# shunt {} ({}) bench transport\n# command: {}\n", version(),
                                 git_revision(), fmt::join(command, " "));
  for (const TransportWorld& world : report.worlds) text += describe(world);
  text += fmt::format(
      "# window {}, at most 16 MiB; blocks of {}, {} warm-up; {} blocks kept, {} dropped because the "
      "placement "
      "changed inside them\n",
      options.window,
      options.iterations > 0 ? fmt::format("{} iterations", options.iterations)
                             : fmt::format("{} ms", options.block_ms),
      options.warmup, report.blocks_kept, report.blocks_dropped);
  text +=
      "# put_latency, signal_latency: half a round trip; put_bandwidth: messages puts, quiet, answer; "
      "put_bibandwidth: both ways at once\n"
      "# bytes: of one message; of a collective, what one rank holds of all ranks (allgather) or sends to "
      "all "
      "(alltoall, alltoallv: the mean), own piece included\n"
      "# gb_per_s = bytes x messages (x 2 both ways) / median; busbw = gb_per_s x (n-1)/n, for alltoallv x "
      "the "
      "share that leaves a rank; 1 GB = 10^9 bytes\n";
  text += options.check ? "# every payload is new and is checked, outside the times; #wrong counts payloads\n"
                        : "# payloads are not checked (--no-check) and stay the same within a block\n";
  for (const std::string& note : report.notes) text += "# " + note + "\n";
  return text;
}

bool is_text(std::size_t column) {
  return column < 2;
}

}  // namespace

std::string format_transport_table(const TransportBenchReport& report, const TransportBenchOptions& options,
                                   const std::vector<std::string>& command, bool tsv) {
  std::string text = header(report, options, command);
  if (tsv) {
    text += fmt::format("# {}\n", fmt::join(kColumns, "\t"));
    for (const TransportRow& row : report.rows)
      text += fmt::format("{}\n", fmt::join(cells_of(row, options.check), "\t"));
    return text;
  }
  std::vector<Cells> lines{Cells(std::begin(kColumns), std::end(kColumns))};
  lines[0][0] = "# op";
  for (const TransportRow* row : main_rows(report.rows)) lines.push_back(cells_of(*row, options.check));
  std::vector<std::size_t> widths(lines[0].size(), 0);
  for (const Cells& line : lines)
    for (std::size_t i = 0; i < line.size(); ++i) widths[i] = std::max(widths[i], line[i].size());
  for (const Cells& line : lines) {
    std::string row;
    for (std::size_t i = 0; i < line.size(); ++i) {
      if (i > 0) row += "  ";
      row +=
          is_text(i) ? fmt::format("{:<{}}", line[i], widths[i]) : fmt::format("{:>{}}", line[i], widths[i]);
    }
    text += row + "\n";
  }
  for (const TransportRow& row : report.rows)
    if (row.wrong > 0)
      text += fmt::format("# wrong: {} {}, {} bytes: {} of {} payloads; {}\n", row.op, row.method, row.bytes,
                          row.wrong, row.checked, row.reason);
  if (main_rows(report.rows).size() < report.rows.size())
    text += "# other placement classes were seen too; --tsv and --jsonl hold all of them\n";
  return text;
}

std::vector<Record> transport_records(const TransportBenchReport& report,
                                      const TransportBenchOptions& options) {
  std::vector<Record> records;
  for (const TransportRow& row : report.rows) {
    const auto world =
        std::find_if(report.worlds.begin(), report.worlds.end(),
                     [&](const TransportWorld& one) { return one.transport == row.transport; });
    const TransportWorld where = world == report.worlds.end() ? TransportWorld{} : *world;
    Record record("result");
    record.set("bench", "transport")
        .set("op", row.op)
        .set("method", row.method)
        .set("status", row.wrong > 0 ? "failed" : "ok")
        .set("reason", row.reason)
        .set("correct", options.check ? RecordValue(row.wrong == 0) : RecordValue{})
        .set("transport", row.transport)
        .set("ranks", std::int64_t{where.ranks})
        .set("nodes", std::int64_t{where.nodes})
        .set("pair_peer", std::int64_t{where.pair_peer})
        .set("clock", clock_name(where.clock))
        .set("bytes", row.bytes)
        .set("messages", row.messages)
        .set("placement", row.placement)
        .set("rounds", row.rounds)
        .set("median_us", row.us.median)
        .set("median_low_us", row.us.median_low)
        .set("median_high_us", row.us.median_high)
        .set("p90_us", row.us.p90)
        .set("p99_us", row.us.p99)
        .set("min_us", row.us.min)
        .set("max_us", row.us.max)
        .set("mean_us", row.us.mean)
        .set("std_us", row.us.stddev)
        .set("cv", row.us.coefficient_of_variation)
        .set("samples", row.us.count)
        .set("gb_per_s", row.gb_per_s)
        .set("busbw_gb_per_s", row.busbw_gb_per_s < 0 ? RecordValue{} : RecordValue(row.busbw_gb_per_s))
        .set("wrong", options.check ? RecordValue(row.wrong) : RecordValue{})
        .set("checked", row.checked);
    records.push_back(std::move(record));
  }
  return records;
}

}  // namespace shunt::bench
