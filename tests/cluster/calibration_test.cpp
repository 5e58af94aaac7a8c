#include <shunt/cluster/calibration.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <iterator>
#include <map>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <shunt/cluster/hardware.h>
#include <shunt/core/random.h>

#include "temporary_directory.h"

namespace shunt {
namespace {

CalibrationOptions options(bool validate) {
  CalibrationOptions o;
  o.hardware_directory = hardware_directory();
  o.validate = validate;
  return o;
}

/// Cases that reach every term of the formula's regime.
std::vector<CostCase> grid(const CostForm& form) {
  std::vector<CostCase> cases;
  const auto add = [&](const CostCase& c) { cases.push_back(c); };
  CostCase c;
  c.regime = form.regime;
  c.op = form.op;
  c.hardware = "h100_sxm";
  c.where = "grid:1";
  if (form.regime == "nccl") {
    for (const std::int32_t ranks : {2, 4, 8})
      for (double bytes = 512; bytes < 1e9; bytes *= 2) {
        c.ranks = ranks;
        c.message_bytes = bytes;
        c.payload = "half";
        add(c);
      }
    return cases;
  }
  for (const std::int32_t nodes : {1, 2, 4, 8}) {
    // One node has no notification of its own.
    if (nodes == 1 && form.regime == "deepep_notify") continue;
    for (const std::int64_t hidden : {2048, 7168})
      for (const std::int64_t experts : {16, 128, 256, 512})
        for (const std::int64_t topk : {1, 8})
          for (std::int64_t tokens = 1; tokens <= 32768; tokens *= 8) {
            c.nodes = form.regime == "trtllm_nvlink_alltoall" ? 1 : nodes;
            c.ranks = form.regime == "trtllm_nvlink_alltoall" ? 2 * nodes : 8 * nodes;
            c.hidden = hidden;
            c.experts = std::max<std::int64_t>(experts, c.ranks);
            c.topk = topk;
            c.tokens_per_rank = tokens;
            c.payload = form.op == "dispatch" ? "fp8_block128" : form.op == "prepare" ? "none" : "bfloat16";
            c.sms = tokens % 3 == 1 ? 20 : 8;
            add(c);
          }
  }
  return cases;
}

TEST(CalibrationTest, RecoversWhatSyntheticDataWasMadeWith) {
  for (const CostForm& form : cost_forms()) {
    Random random(3, 1);
    // True parameters up to 1.5 times larger or smaller than the priors; shares stay below their bound of 1.
    std::vector<double> truth;
    for (const CostParameter& p : form.parameters)
      truth.push_back(std::min(p.high * 0.95, p.prior * std::exp((random.uniform() - 0.5) * 0.8)));
    MeasurementFile file;
    file.path = "synthetic.csv";
    file.cases = grid(form);
    const Device device = form.regime == "host" ? Device{"h100_sxm", 1, 1, 0, 1, {}}
                                                : find_device("h100_sxm", hardware_directory());
    for (CostCase& c : file.cases) c.measured_us = evaluate_cost(form, truth, cost_terms(c, device));
    const CalibrationReport report = calibrate({file}, options(false));
    ASSERT_EQ(report.calibration.fits.size(), 1U);
    const CostFit& fit = report.calibration.fits[0];
    EXPECT_LT(fit.fitted.max_pct, 1.5) << form.regime << "/" << form.op;
    // Where a share of a rate is what long messages wait for, it must come back as it was.
    if (form.regime == "host" || form.op == "prepare") continue;
    for (std::size_t i = 0; i < form.parameters.size(); ++i) {
      const std::string& name = form.parameters[i].name;
      if (name == "network_rate" || name == "long_rate") {
        EXPECT_NEAR(fit.parameters[i] / truth[i], 1, 0.15) << form.regime << "/" << form.op << " " << name;
      }
    }
  }
}

TEST(CalibrationTest, FollowsTheDataSheet) {
  // Twice the NVLink rate halves what the wire costs; nothing else changes.
  const CostForm& form = find_cost_form("nccl", "all_gather");
  std::vector<double> parameters;
  for (const CostParameter& p : form.parameters) parameters.push_back(p.prior);
  CostCase c;
  c.regime = "nccl";
  c.op = "all_gather";
  c.ranks = 8;
  c.payload = "half";
  c.message_bytes = 1e9;
  Device device{"x", 450, 50, 132, 1, {}};
  const double once = evaluate_cost(form, parameters, cost_terms(c, device));
  device.scale_up_gb_per_s = 900;
  const double twice = evaluate_cost(form, parameters, cost_terms(c, device));
  EXPECT_NEAR(once / twice, 2, 0.03);
  c.message_bytes = 1e3;
  const double brief = evaluate_cost(form, parameters, cost_terms(c, device));
  device.dies = 4;
  EXPECT_NEAR(evaluate_cost(form, parameters, cost_terms(c, device)) / brief, 2, 0.05);
}

TEST(CalibrationTest, NeedsMoreTimeForMore) {
  for (const CostForm& form : cost_forms()) {
    std::vector<double> parameters;
    for (const CostParameter& p : form.parameters) parameters.push_back(p.prior);
    for (CostCase c : grid(form)) {
      const Device device = form.regime == "host" ? Device{"h100_sxm", 1, 1, 0, 1, {}}
                                                  : find_device("h100_sxm", hardware_directory());
      const double before = evaluate_cost(form, parameters, cost_terms(c, device));
      EXPECT_GT(before, 0);
      c.tokens_per_rank *= 2;
      c.message_bytes *= 2;
      EXPECT_GE(evaluate_cost(form, parameters, cost_terms(c, device)), before * 0.999)
          << form.regime << "/" << form.op << " " << c.tokens_per_rank << " " << c.message_bytes;
    }
  }
}

class MeasuredTest : public testing::Test {
 protected:
  static const CalibrationReport& report() {
    static const CalibrationReport r = [] {
      std::vector<MeasurementFile> files;
      for (const char* name :
           {"deepep_low_latency", "deepep_normal", "nccl_collectives", "trtllm_nvlink_alltoall"})
        files.push_back(read_measurements(std::string("data/measured/") + name + ".csv"));
      return calibrate(files, options(true));
    }();
    return r;
  }
};

TEST_F(MeasuredTest, PredictsShapesThatItHasNotSeen) {
  ASSERT_EQ(report().regimes.size(), 5U);
  for (const RegimeErrors& regime : report().regimes) {
    // Notifications were measured for one shape only.
    if (regime.name == "deepep_notify") {
      EXPECT_LE(regime.fitted.median_pct, 10);
      continue;
    }
    EXPECT_LE(regime.shape_left_out.median_pct, 4) << regime.name;
    EXPECT_LE(regime.shape_left_out.p90_pct, 12) << regime.name;
    EXPECT_GE(regime.shape_left_out.rows, 800) << regime.name;
  }
}

TEST_F(MeasuredTest, PredictsNodeAndRankCountsThatItHasNotSeen) {
  // Without the rows of one node there is nothing to learn NVLink from: those are in docs/results/cost_model.md, with
  // wider errors. Other counts of nodes and ranks, together for each regime:
  std::map<std::string, std::vector<double>> medians;
  for (const ScaleErrors& scale : report().scales) {
    // One count of nodes cannot say what each node costs: the notifications' errors are in docs/results/cost_model.md.
    if (scale.regime == "deepep_notify") continue;
    if (scale.scale == "1 nodes") {
      EXPECT_LE(scale.left_out.median_pct, 25) << scale.regime << "/" << scale.op;
      continue;
    }
    EXPECT_LE(scale.left_out.median_pct, 16) << scale.regime << "/" << scale.op << " " << scale.scale;
    medians[scale.regime].push_back(scale.left_out.median_pct);
  }
  // All left-out rows together.
  for (const RegimeErrors& regime : report().regimes) {
    if (regime.name == "deepep_notify") continue;
    EXPECT_LE(regime.scale_left_out.median_pct, 8) << regime.name;
  }
  ASSERT_EQ(medians.size(), 4U);
  for (auto& [regime, list] : medians) {
    std::sort(list.begin(), list.end());
    EXPECT_LE(list[list.size() / 2], 8) << regime;
  }
}

TEST_F(MeasuredTest, CarriesOverToTheNextGpuByItsDataSheet) {
  int found = 0;
  for (const TransferErrors& transfer : report().transfers) {
    if (transfer.from != "h100_sxm" || transfer.to != "b200_sxm") continue;
    ++found;
    EXPECT_LE(transfer.with_dies.median_pct, 20) << transfer.regime << "/" << transfer.op;
  }
  EXPECT_EQ(found, 7);
}

TEST_F(MeasuredTest, PredictsPublishedTablesOfDeepEp) {
  const MeasurementFile file = read_measurements("data/published/alltoall.csv");
  const CostModel model(report().calibration, hardware_directory());
  std::vector<double> errors;
  for (const CostCase& c : file.cases) {
    if (c.hardware != "hgx-h800") continue;
    errors.push_back(100 * std::abs(model.predict(c).us / c.measured_us - 1));
  }
  ASSERT_EQ(errors.size(), 20U);
  EXPECT_LE(summarize_errors(errors).median_pct, 10);
  EXPECT_LE(summarize_errors(errors).max_pct, 30);
}

// torch's dense all-to-all, as pplx-kernels prints it, on up to 16 nodes: NCCL was measured on one.
TEST_F(MeasuredTest, CarriesNcclAlltoallOverTheNetwork) {
  const MeasurementFile file = read_measurements("data/published/alltoall.csv");
  const CostModel model(report().calibration, hardware_directory());
  std::vector<double> errors;
  for (const CostCase& c : file.cases)
    if (c.regime == "nccl") errors.push_back(100 * std::abs(model.predict(c).us / c.measured_us - 1));
  ASSERT_EQ(errors.size(), 5U);
  EXPECT_LE(summarize_errors(errors).median_pct, 15);
  EXPECT_LE(summarize_errors(errors).max_pct, 35);
}

TEST_F(MeasuredTest, PutsNotificationsBesideTheirColumns) {
  MeasurementFile file = read_measurements("data/measured/deepep_normal.csv");
  const CostModel model(report().calibration, hardware_directory());
  ASSERT_EQ(file.beside.size(), 2U);
  ASSERT_EQ(file.beside_cases.size(), 2 * file.rows.size());
  const std::string csv = predicted_csv(file, model);
  const std::string header = csv.substr(0, csv.find('\n'));
  EXPECT_NE(header.find(",dispatch_notify_us,dispatch_notify_predicted_us,dispatch_notify_error_pct,"),
            std::string::npos)
      << header;
  EXPECT_TRUE(header.ends_with(
      ",combine_notify_us,combine_notify_predicted_us,combine_notify_error_pct,predicted_us,error_pct"))
      << header;
  std::vector<double> errors;
  for (const CostCase& c : file.beside_cases) {
    if (c.nodes == 1) {
      EXPECT_EQ(c.measured_us, 0) << c.where;
      continue;
    }
    errors.push_back(100 * std::abs(model.predict(c).us / c.measured_us - 1));
  }
  EXPECT_EQ(errors.size(), 552U);
  EXPECT_LE(summarize_errors(errors).median_pct, 10);
  // A fit of files without them still predicts the rest.
  const Calibration without = [] {
    Calibration all = report().calibration;
    std::erase_if(all.fits, [](const CostFit& fit) { return fit.regime == "deepep_notify"; });
    return all;
  }();
  const CostModel older(without, hardware_directory());
  EXPECT_FALSE(older.knows(file.beside_cases[0]));
  EXPECT_NE(predicted_json(file, older).find("dispatch_predicted_us"), std::string::npos);
}

TEST_F(MeasuredTest, MakesTheFitThatComesWithShunt) {
  std::ifstream file("presets/fits/measured.toml");
  const std::string stored{std::istreambuf_iterator<char>(file), {}};
  // Other compilers and C libraries may differ in the last digits, so parameters are compared, not bytes.
  const Calibration shipped = read_calibration("presets/fits/measured.toml");
  const Calibration& made = report().calibration;
  ASSERT_EQ(shipped.fits.size(), made.fits.size());
  for (std::size_t i = 0; i < made.fits.size(); ++i) {
    EXPECT_EQ(shipped.fits[i].hardware, made.fits[i].hardware);
    EXPECT_NEAR(shipped.fits[i].fitted.median_pct, made.fits[i].fitted.median_pct, 0.2);
  }
  ASSERT_EQ(shipped.sources.size(), 4U);
  for (std::size_t i = 0; i < 4; ++i) EXPECT_EQ(shipped.sources[i].sha256, made.sources[i].sha256);
  EXPECT_NE(stored.find("format = 1"), std::string::npos);
}

TEST(CalibrationFileTest, ReadsWhatItWroteAndRepeatsItsBytes) {
  const MeasurementFile file = read_measurements("data/measured/deepep_low_latency.csv");
  const std::string text = to_toml(calibrate({file}, options(false)).calibration);
  EXPECT_EQ(text, to_toml(calibrate({file}, options(false)).calibration));
  const TemporaryDirectory directory;
  const std::string path = directory.write("fit.toml", text);
  EXPECT_EQ(to_toml(read_calibration(path)), text);
  expect_error(Errc::io,
               directory.write("a.toml", "format = 1\nshunt = \"x\"\n") +
                   ":1:1: a fit file needs at least one [[fit]]",
               [&] { static_cast<void>(read_calibration(directory.path() + "/a.toml")); });
  const std::string wrong = directory.write("b.toml", replaced(text, "per_expert =", "per_exprt ="));
  try {
    static_cast<void>(read_calibration(wrong));
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Errc::io);
    EXPECT_NE(std::string(error.what()).find("per_expert"), std::string::npos) << error.what();
  }
}

TEST(CalibrationFileTest, SaysWhatIsMissing) {
  MeasurementFile file = read_measurements("data/measured/deepep_low_latency.csv");
  file.cases[3].measured_us = 0;
  expect_error(
      Errc::invalid_argument,
      "data/measured/deepep_low_latency.csv:3: deepep_low_latency/combine has no measured latency to "
      "calibrate on",
      [&] { static_cast<void>(calibrate({file}, options(false))); });
  const Calibration calibration =
      calibrate({read_measurements("data/measured/deepep_low_latency.csv")}, options(false)).calibration;
  const CostModel model(calibration, hardware_directory());
  CostCase c = file.cases[0];
  c.regime = "nccl";
  c.op = "alltoall";
  c.where = "x.csv:7";
  expect_error(Errc::invalid_argument,
               "x.csv:7: no fit for nccl/alltoall on b200_sxm; shunt calibrate makes one from measurements",
               [&] { static_cast<void>(model.predict(c)); });
  try {
    static_cast<void>(find_device("h100_smx", hardware_directory()));
    FAIL();
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("did you mean \"h100_sxm\"?"), std::string::npos)
        << error.what();
  }
}

}  // namespace
}  // namespace shunt
