#include <algorithm>
#include <cctype>
#include <filesystem>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <shunt/core/error.h>
#include <shunt/core/record.h>
#include <shunt/scenario/generate.h>
#include <shunt/scenario/nodes.h>
#include <shunt/scenario/results.h>

#include "json.h"

namespace shunt::scenario {
namespace {

namespace fs = std::filesystem;

std::string escaped(const std::string& text) {
  std::string out;
  for (const char c : text) {
    if (c == '&')
      out += "&amp;";
    else if (c == '<')
      out += "&lt;";
    else if (c == '>')
      out += "&gt;";
    else if (c == '"')
      out += "&quot;";
    else if (static_cast<unsigned char>(c) < 0x20 && c != '\n' && c != '\t')
      out += ' ';
    else
      out += c;
  }
  return out;
}

std::string csv_cell(const std::string& text) {
  if (text.find_first_of(",\"\n\r") == std::string::npos) return text;
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"') out += '"';
    out += c;
  }
  return out + '"';
}

/// The keys of all rows, in the order in which they first come.
std::vector<std::string> columns_of(const std::vector<const Finished*>& runs) {
  std::vector<std::string> columns;
  for (const Finished* run : runs)
    for (const Row& row : run->rows)
      for (const auto& [key, value] : row)
        if (std::find(columns.begin(), columns.end(), key) == columns.end()) columns.push_back(key);
  return columns;
}

std::string csv(const std::vector<const Finished*>& runs) {
  const std::vector<std::string> columns = columns_of(runs);
  std::string text = "run,status";
  for (const std::string& column : columns) text += "," + csv_cell(column);
  text += ",result_dir\n";
  for (const Finished* run : runs)
    for (const Row& row : run->rows) {
      text += csv_cell(run->label) + "," + status_name(run->status);
      for (const std::string& column : columns) {
        const auto found = std::find_if(row.begin(), row.end(),
                                        [&column](const auto& cell) { return cell.first == column; });
        text +=
            "," + (found == row.end() || !found->second ? std::string() : csv_cell(to_text(*found->second)));
      }
      text += "," + csv_cell(run->folder) + "\n";
    }
  return text;
}

Json summary_json(const Summary& summary) {
  Json tests = Json::array();
  Json counts = Json::object();
  for (const Status status :
       {Status::passed, Status::failed, Status::skipped, Status::interrupted, Status::not_run})
    counts[status_name(status)] =
        std::count_if(summary.runs.begin(), summary.runs.end(),
                      [status](const Finished& run) { return run.status == status; });
  for (const Finished& run : summary.runs) {
    Json point = Json::object();
    for (const auto& [key, value] : run.point) point[key] = to_json(value);
    Json rows = Json::array();
    for (const Row& row : run.rows) rows.push_back(to_json(row));
    tests.push_back({{"run", run.label},
                     {"id", run.id},
                     {"iteration", run.iteration},
                     {"step", run.step},
                     {"name", run.name},
                     {"template", run.template_name},
                     {"status", status_name(run.status)},
                     {"reason", run.reason},
                     {"exit_code", run.exit_code},
                     {"elapsed_s", run.elapsed_s},
                     {"folder", run.folder},
                     {"point", point},
                     {"rows", rows}});
  }
  return {{"format", 1},
          {"scenario", summary.scenario},
          {"system", summary.system},
          {"started", summary.started},
          {"version", version()},
          {"git_revision", git_revision()},
          {"status", summary.passed() ? "passed" : "failed"},
          {"counts", counts},
          {"tests", tests}};
}

std::string junit(const Summary& summary) {
  std::int64_t failures = 0;
  std::int64_t skipped = 0;
  double seconds = 0;
  for (const Finished& run : summary.runs) {
    failures += run.status == Status::failed || run.status == Status::interrupted ? 1 : 0;
    skipped += run.status == Status::skipped || run.status == Status::not_run ? 1 : 0;
    seconds += run.elapsed_s;
  }
  std::string text = fmt::format(
      "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuite name=\"{}\" tests=\"{}\" failures=\"{}\" "
      "errors=\"0\" skipped=\"{}\" time=\"{:.3f}\">\n",
      escaped(summary.scenario), summary.runs.size(), failures, skipped, seconds);
  for (const Finished& run : summary.runs) {
    text += fmt::format("  <testcase classname=\"{}\" name=\"{}\" time=\"{:.3f}\"", escaped(run.name),
                        escaped(run.label), run.elapsed_s);
    if (run.status == Status::passed)
      text += "/>\n";
    else if (run.status == Status::failed || run.status == Status::interrupted)
      text += fmt::format("><failure message=\"{}\"/></testcase>\n", escaped(run.reason));
    else
      text += fmt::format("><skipped message=\"{}\"/></testcase>\n", escaped(run.reason));
  }
  return text + "</testsuite>\n";
}

/// The first numbers of a run, for the page.
std::string metrics_text(const Finished& run) {
  std::string text;
  for (const Row& row : run.rows) {
    std::string line;
    for (const auto& [key, value] : row) {
      if (!value) continue;
      const bool shown = key == "backend" || key == "method" || key == "operation" || key == "phase" ||
                         key == "op" || key == "size" || key == "bytes" || key == "bus_bw_avg" ||
                         key == "median_us" || key == "busbw" || key == "gb_per_s";
      if (!shown) continue;
      const auto* number = std::get_if<double>(&*value);
      line += fmt::format("{}{} {}", line.empty() ? "" : ", ", key,
                          number == nullptr ? to_text(*value) : fmt::format("{:.4g}", *number));
    }
    if (line.empty() && !row.empty() && row.front().second)
      line = row.front().first + " " + to_text(*row.front().second);
    text += (text.empty() ? "" : "<br>") + escaped(line);
    constexpr std::size_t kLongest = 4000;
    if (text.size() > kLongest) return text + "<br>…";
  }
  return text;
}

std::string address(const std::string& path) {
  std::string out;
  for (const char c : path) {
    const auto byte = static_cast<unsigned char>(c);
    if (std::isalnum(byte) != 0 || std::string_view("/-_.~").find(c) != std::string_view::npos)
      out += c;
    else
      out += fmt::format("%{:02X}", byte);
  }
  return out;
}

std::string html(const std::string& folder, const Summary& summary) {
  std::string text = fmt::format(R"(<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{0}</title><style>
body {{ font-family: sans-serif; margin: 2em; color: #222 }}
table {{ border-collapse: collapse }} td, th {{ border: 1px solid #ccc; padding: .3em .6em; text-align: left; vertical-align: top }}
.passed {{ background: #d9f2d9 }} .failed, .interrupted {{ background: #f7d4d4 }} .skipped, .not {{ background: #eee }}
</style></head><body><h1>{0}</h1><p class="{1}">{1}; system {2}; started {3}; shunt {4}</p>
<p><a href="summary.json">summary.json</a> · <a href="results.csv">results.csv</a> · <a href="junit.xml">junit.xml</a></p>
<table><tr><th>Run</th><th>Test</th><th>Status</th><th>Seconds</th><th>Reason</th><th>Point</th><th>Metrics</th><th>Files</th></tr>
)",
                                 escaped(summary.scenario), summary.passed() ? "passed" : "failed",
                                 escaped(summary.system), escaped(summary.started), version());
  for (const Finished& run : summary.runs) {
    std::string point;
    for (const auto& [key, value] : run.point)
      point += fmt::format("{}{} = {}", point.empty() ? "" : "<br>", escaped(key), escaped(to_text(value)));
    std::string links;
    for (const char* name :
         {"stdout.txt", "stderr.txt", "test-run.toml", "cloudai_sbatch_script.sh", "case.json"})
      if (fs::exists(fmt::format("{}/{}/{}", folder, run.folder, name)))
        links += fmt::format("<a href=\"{}\">{}</a><br>", address(run.folder + "/" + name), name);
    text += fmt::format(
        "<tr><td>{}</td><td>{}</td><td "
        "class=\"{}\">{}</td><td>{:.1f}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>\n",
        escaped(run.label), escaped(run.name), status_name(run.status), status_name(run.status),
        run.elapsed_s, escaped(run.reason), point, metrics_text(run), links);
  }
  return text + "</table></body></html>\n";
}

}  // namespace

bool Summary::passed() const noexcept {
  return !runs.empty() && std::all_of(runs.begin(), runs.end(),
                                      [](const Finished& run) { return run.status == Status::passed; });
}

void write_reports(const std::string& folder, const Summary& summary) {
  std::vector<const Finished*> all;
  for (const Finished& run : summary.runs) {
    all.push_back(&run);
    const std::string own = folder + "/" + run.folder;
    std::string name = run.name;
    std::replace(name.begin(), name.end(), '/', '_');
    if (!run.rows.empty() && fs::exists(own))
      write_file(fmt::format("{}/cloudai_{}_report.csv", own, name), without_secrets(csv({&run})));
  }
  write_file(folder + "/results.csv", without_secrets(csv(all)));
  write_file(folder + "/junit.xml", without_secrets(junit(summary)));
  write_file(fmt::format("{}/{}.html", folder, summary.scenario), without_secrets(html(folder, summary)));
  write_file(
      folder + "/summary.json",
      without_secrets(summary_json(summary).dump(2, ' ', false, Json::error_handler_t::replace)) + "\n");
}

Summary read_campaign(const std::string& folder) {
  const Json json = read_json(folder + "/summary.json");
  Summary summary;
  try {
    summary.scenario = json.at("scenario").get<std::string>();
    summary.system = json.at("system").get<std::string>();
    summary.started = json.at("started").get<std::string>();
    for (const Json& test : json.at("tests")) {
      Finished run;
      run.label = test.at("run").get<std::string>();
      run.id = test.at("id").get<std::string>();
      run.name = test.at("name").get<std::string>();
      run.template_name = test.at("template").get<std::string>();
      run.folder = test.at("folder").get<std::string>();
      run.iteration = test.at("iteration").get<std::int64_t>();
      run.step = test.at("step").get<std::int64_t>();
      run.reason = test.at("reason").get<std::string>();
      // What a run wrote about itself counts, where it did.
      const auto own = read_case(folder + "/" + run.folder);
      if (own) run = *own;
      if (!own && test.at("status").get<std::string>() == status_name(Status::skipped))
        run.status = Status::skipped;
      summary.runs.push_back(std::move(run));
    }
  } catch (const Json::exception& error) {
    throw Error(Errc::io,
                fmt::format("{}/summary.json: this is no summary of a campaign: {}", folder, error.what()));
  }
  return summary;
}

}  // namespace shunt::scenario
