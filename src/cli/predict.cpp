#include <memory>

#include <CLI/CLI.hpp>

#include <shunt/cluster/calibration.h>
#include <shunt/cluster/hardware.h>
#include <shunt/core/record.h>

#include "commands.h"
#include "output.h"

namespace shunt::cli {
namespace {

struct Typed {
  std::string file;
  std::string fit;
  std::string output;
  std::string hardware;
  std::string format = "csv";
};

int run(const Typed& typed) {
  const Calibration calibration =
      read_calibration(typed.fit.empty() ? default_calibration_path() : typed.fit);
  const MeasurementFile file = read_measurements(typed.file, typed.hardware);
  const CostModel model(calibration, hardware_directory());
  const std::string text = typed.format == "json" ? predicted_json(file, model) : predicted_csv(file, model);
  if (typed.output.empty())
    print_text(text);
  else
    write_new_file(typed.output, text);
  return 0;
}

}  // namespace

void add_predict(CLI::App& parent, Command& command) {
  CLI::App* app = parent.add_subcommand(
      "predict", "Predict the latencies of a file of cases, beside what was measured, with the error");
  const auto typed = std::make_shared<Typed>();
  app->add_option("file", typed->file, "CSV as in data/measured; latencies may be empty")
      ->required()
      ->type_name("FILE");
  app->add_option("--fit", typed->fit,
                  "Fit file of shunt calibrate (default: the one that comes with Shunt)");
  app->add_option("-o,--output", typed->output,
                  "File for the rows (default: standard output); never overwritten");
  app->add_option("--hardware", typed->hardware, "Machine of files that do not name one (nccl-tests)");
  app->add_option("--format", typed->format, "csv or json")->check(CLI::IsMember({"csv", "json"}));
  app->callback([&command, typed] { command = [typed] { return run(*typed); }; });
}

}  // namespace shunt::cli
