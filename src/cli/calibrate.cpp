#include <cstdio>
#include <filesystem>
#include <memory>

#include <fmt/format.h>
#include <CLI/CLI.hpp>

#include <shunt/cluster/calibration.h>
#include <shunt/cluster/hardware.h>
#include <shunt/core/error.h>
#include <shunt/core/record.h>

#include "commands.h"

namespace shunt::cli {
namespace {

struct Typed {
  std::vector<std::string> files;
  std::string output;
  std::string hardware;
  std::string date;
  std::string format = "text";
  bool no_validation = false;
};

std::string cell(const ErrorSummary& errors) {
  if (errors.rows == 0) return "-";
  return fmt::format("{:.1f} / {:.1f} ({})", errors.median_pct, errors.p90_pct, errors.rows);
}

void print_text(const CalibrationReport& report) {
  fmt::print("Errors in %: median / 90th percentile (rows)\n\n");
  fmt::print("{:<58} {:>20} {:>20} {:>20}\n", "fit", "fitted", "shape left out", "scale left out");
  for (const CostFit& fit : report.calibration.fits) {
    fmt::print("{:<58} {:>20} {:>20} {:>20}\n",
               fmt::format("{}/{} {}{}{}", fit.regime, fit.op, fit.variant, fit.variant.empty() ? "" : " ",
                           fit.hardware),
               cell(fit.fitted), cell(fit.shape_left_out), cell(fit.scale_left_out));
  }
  fmt::print("\n");
  for (const RegimeErrors& regime : report.regimes) {
    fmt::print("{:<58} {:>20} {:>20} {:>20}\n", regime.name, cell(regime.fitted), cell(regime.shape_left_out),
               cell(regime.scale_left_out));
  }
  if (!report.scales.empty()) fmt::print("\n{:<58} {:>20}\n", "scale left out, one by one", "");
  for (const ScaleErrors& scale : report.scales) {
    fmt::print("{:<58} {:>20}\n", fmt::format("{}/{} without {}", scale.regime, scale.op, scale.scale),
               cell(scale.left_out));
  }
  if (!report.transfers.empty())
    fmt::print("\n{:<58} {:>20} {:>20}\n", "other machine, by data sheet", "same latencies",
               "and sqrt(dies)");
  for (const TransferErrors& transfer : report.transfers) {
    fmt::print("{:<58} {:>20} {:>20}\n",
               fmt::format("{}/{} {} -> {}", transfer.regime, transfer.op, transfer.from, transfer.to),
               cell(transfer.same_latency), cell(transfer.with_dies));
  }
}

void set_errors(Record& record, const std::string& name, const ErrorSummary& errors) {
  if (errors.rows == 0) return;
  record.set(name + "_rows", errors.rows);
  record.set(name + "_median_pct", errors.median_pct);
  record.set(name + "_p90_pct", errors.p90_pct);
  record.set(name + "_max_pct", errors.max_pct);
}

void print_json(const CalibrationReport& report) {
  for (const CostFit& fit : report.calibration.fits) {
    Record record("fit");
    record.set("regime", RecordValue(fit.regime)).set("op", RecordValue(fit.op));
    record.set("variant", RecordValue(fit.variant)).set("hardware", RecordValue(fit.hardware));
    set_errors(record, "fitted", fit.fitted);
    set_errors(record, "shape_left_out", fit.shape_left_out);
    set_errors(record, "scale_left_out", fit.scale_left_out);
    fmt::print("{}\n", record.to_json());
  }
  for (const RegimeErrors& regime : report.regimes) {
    Record record("regime");
    record.set("regime", RecordValue(regime.name));
    set_errors(record, "fitted", regime.fitted);
    set_errors(record, "shape_left_out", regime.shape_left_out);
    set_errors(record, "scale_left_out", regime.scale_left_out);
    fmt::print("{}\n", record.to_json());
  }
  for (const ScaleErrors& scale : report.scales) {
    Record record("scale_left_out");
    record.set("regime", RecordValue(scale.regime)).set("op", RecordValue(scale.op));
    record.set("scale", RecordValue(scale.scale));
    set_errors(record, "left_out", scale.left_out);
    fmt::print("{}\n", record.to_json());
  }
  for (const TransferErrors& transfer : report.transfers) {
    Record record("transfer");
    record.set("regime", RecordValue(transfer.regime)).set("op", RecordValue(transfer.op));
    record.set("from", RecordValue(transfer.from)).set("to", RecordValue(transfer.to));
    set_errors(record, "same_latency", transfer.same_latency);
    set_errors(record, "with_dies", transfer.with_dies);
    fmt::print("{}\n", record.to_json());
  }
}

int run(const Typed& typed) {
  // Before seconds of work: nothing is overwritten.
  if (!typed.output.empty() && std::filesystem::exists(typed.output))
    throw Error(Errc::invalid_argument,
                fmt::format("--output: {} exists; nothing is overwritten", typed.output));
  std::vector<MeasurementFile> files;
  for (const std::string& path : typed.files) files.push_back(read_measurements(path, typed.hardware));
  CalibrationOptions options;
  options.hardware_directory = hardware_directory();
  options.validate = !typed.no_validation;
  options.date = typed.date;
  const CalibrationReport report = calibrate(files, options);
  if (typed.format == "json")
    print_json(report);
  else
    print_text(report);
  if (!typed.output.empty()) write_new_file(typed.output, to_toml(report.calibration));
  return 0;
}

}  // namespace

void add_calibrate(CLI::App& parent, Command& command) {
  CLI::App* app = parent.add_subcommand(
      "calibrate", "Fit the cost model to measurements, and say how well it predicts what it has not seen");
  const auto typed = std::make_shared<Typed>();
  app->add_option("files", typed->files,
                  "CSV files of measurements, shunt bench alltoall --jsonl, output of nccl-tests")
      ->required()
      ->type_name("FILE");
  app->add_option("-o,--output", typed->output, "Fit file (TOML); never overwritten");
  app->add_option("--hardware", typed->hardware, "Machine of files that do not name one (nccl-tests)");
  app->add_option("--date", typed->date,
                  "Written into the fit file (default: none, so that equal input gives equal bytes)");
  app->add_flag("--no-validation", typed->no_validation, "Fit only; no cross-validation");
  app->add_option("--format", typed->format, "text or json (one record a line)")
      ->check(CLI::IsMember({"text", "json"}));
  app->callback([&command, typed] { command = [typed] { return run(*typed); }; });
}

}  // namespace shunt::cli
