#include <shunt/cluster/calibration.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <tuple>

#include <fmt/format.h>

#include <shunt/core/error.h>
#include <shunt/core/record.h>
#include <shunt/core/statistics.h>

#include "least_squares.h"

namespace shunt {
namespace {

/// Cases of one formula on one machine, with what the formula needs of them.
struct Group {
  const CostForm* form = nullptr;
  std::string variant, hardware;
  Device device;
  std::vector<CostCase> cases;
  std::vector<CostTerms> terms;
  std::vector<double> measured;
};

using Key = std::tuple<std::string, std::string, std::string, std::string>;

std::vector<double> fit(const Group& group, const std::vector<std::size_t>& rows,
                        const std::vector<double>& start) {
  detail::LeastSquaresProblem problem;
  for (const CostParameter& parameter : group.form->parameters) {
    problem.prior.push_back(parameter.prior);
    problem.low.push_back(parameter.low);
    problem.high.push_back(parameter.high);
  }
  std::vector<double> measured;
  for (const std::size_t row : rows) measured.push_back(group.measured[row]);
  return detail::fit_least_squares(problem, measured, start.empty() ? problem.prior : start,
                                   [&](std::span<const double> parameters, std::span<double> predicted) {
                                     for (std::size_t i = 0; i < rows.size(); ++i)
                                       predicted[i] =
                                           evaluate_cost(*group.form, parameters, group.terms[rows[i]]);
                                   });
}

double error_pct(const Group& group, const std::vector<double>& parameters, const CostTerms& terms,
                 std::size_t row) {
  return 100 * std::abs(evaluate_cost(*group.form, parameters, terms) / group.measured[row] - 1);
}

using KeyOf = std::string (*)(const CostCase&);

/// Errors of each row, predicted by a fit to the rows with other keys; by key. Empty where there is one key only.
std::map<std::string, std::vector<double>> leave_out(const Group& group, KeyOf key_of,
                                                     const std::vector<double>& start) {
  std::map<std::string, std::vector<std::size_t>> rows_of;
  for (std::size_t i = 0; i < group.cases.size(); ++i) rows_of[key_of(group.cases[i])].push_back(i);
  std::map<std::string, std::vector<double>> errors;
  if (rows_of.size() < 2) return errors;
  for (const auto& [key, left_out] : rows_of) {
    std::vector<std::size_t> kept;
    for (std::size_t i = 0; i < group.cases.size(); ++i)
      if (key_of(group.cases[i]) != key) kept.push_back(i);
    const std::vector<double> parameters = fit(group, kept, start);
    for (const std::size_t row : left_out)
      errors[key].push_back(error_pct(group, parameters, group.terms[row], row));
  }
  return errors;
}

std::vector<double> joined(const std::map<std::string, std::vector<double>>& by_key) {
  std::vector<double> all;
  for (const auto& [key, errors] : by_key) all.insert(all.end(), errors.begin(), errors.end());
  return all;
}

void append(std::vector<double>& to, const std::vector<double>& from) {
  to.insert(to.end(), from.begin(), from.end());
}

/// What runs on the CPU has no rates on a data sheet: its formula takes them from the measurements.
Device device_of(const CostCase& c, const std::string& directory) {
  return c.regime == "host" ? Device{c.hardware, 1, 1, 0, 1, {}} : find_device(c.hardware, directory);
}

std::vector<Group> group_cases(const std::vector<MeasurementFile>& files, const std::string& directory) {
  std::map<Key, Group> groups;
  std::map<std::string, Device> devices;
  for (const MeasurementFile& file : files) {
    std::vector<CostCase> cases = file.cases;
    for (const CostCase& c : file.beside_cases)
      if (c.measured_us > 0) cases.push_back(c);
    for (const CostCase& c : cases) {
      if (!(c.measured_us > 0)) {
        throw Error(Errc::invalid_argument, fmt::format("{}: {}/{} has no measured latency to calibrate on",
                                                        c.where, c.regime, c.op));
      }
      if (!devices.contains(c.hardware)) {
        try {
          devices.emplace(c.hardware, device_of(c, directory));
        } catch (const Error& error) {
          throw Error(error.code(), fmt::format("{}: {}", c.where, error.what()));
        }
      }
      Group& group = groups[{c.regime, c.op, c.variant, c.hardware}];
      group.form = &find_cost_form(c.regime, c.op);
      group.variant = c.variant;
      group.hardware = c.hardware;
      group.device = devices[c.hardware];
      group.cases.push_back(c);
      group.terms.push_back(cost_terms(c, group.device));
      group.measured.push_back(c.measured_us);
    }
  }
  std::vector<Group> list;
  for (auto& [key, group] : groups) list.push_back(std::move(group));
  return list;
}

std::string file_name(const std::string& path) {
  return path.substr(path.find_last_of('/') + 1);
}

/// "h100_sxm", as measurement files name machines, is a machine of GPU h100.
bool is_of_gpu(const std::string& hardware, const std::string& gpu) {
  return !gpu.empty() && (hardware == gpu || hardware == gpu + "_sxm");
}

ErrorSummary transfer(const Group& to, const std::vector<double>& parameters, const Device& device) {
  std::vector<double> errors;
  for (std::size_t row = 0; row < to.cases.size(); ++row)
    errors.push_back(error_pct(to, parameters, cost_terms(to.cases[row], device), row));
  return summarize_errors(std::move(errors));
}

}  // namespace

ErrorSummary summarize_errors(std::vector<double> errors_pct) {
  ErrorSummary summary;
  if (errors_pct.empty()) return summary;
  std::sort(errors_pct.begin(), errors_pct.end());
  summary.rows = static_cast<std::int64_t>(errors_pct.size());
  summary.median_pct = percentile(errors_pct, 0.5);
  summary.p90_pct = percentile(errors_pct, 0.9);
  summary.max_pct = errors_pct.back();
  return summary;
}

CalibrationReport calibrate(const std::vector<MeasurementFile>& files, const CalibrationOptions& options) {
  CalibrationReport report;
  report.calibration.shunt_version = version();
  report.calibration.date = options.date;
  for (const MeasurementFile& file : files) {
    const auto beside = std::count_if(file.beside_cases.begin(), file.beside_cases.end(),
                                      [](const CostCase& c) { return c.measured_us > 0; });
    report.calibration.sources.push_back(
        {file_name(file.path), file.sha256, static_cast<std::int64_t>(file.cases.size()) + beside});
  }
  const std::vector<Group> groups = group_cases(files, options.hardware_directory);
  if (groups.empty()) throw Error(Errc::invalid_argument, "these files hold no measurement");

  struct Errors {
    std::vector<double> fitted, shape, scale;
  };
  std::map<std::string, Errors> regimes;
  std::map<std::tuple<std::string, std::string, std::string>, std::vector<double>> scales;
  for (const Group& group : groups) {
    std::vector<std::size_t> rows(group.cases.size());
    for (std::size_t i = 0; i < rows.size(); ++i) rows[i] = i;
    CostFit result{group.form->regime, group.form->op, group.variant, group.hardware, {}, {}, {}, {}};
    result.parameters = fit(group, rows, {});
    Errors errors;
    for (const std::size_t row : rows)
      errors.fitted.push_back(error_pct(group, result.parameters, group.terms[row], row));
    if (options.validate) {
      errors.shape = joined(leave_out(group, shape_key, result.parameters));
      const auto by_scale = leave_out(group, scale_key, {});
      errors.scale = joined(by_scale);
      for (const auto& [key, list] : by_scale) append(scales[{result.regime, result.op, key}], list);
    }
    result.fitted = summarize_errors(errors.fitted);
    result.shape_left_out = summarize_errors(errors.shape);
    result.scale_left_out = summarize_errors(errors.scale);
    Errors& sum = regimes[result.regime];
    append(sum.fitted, errors.fitted);
    append(sum.shape, errors.shape);
    append(sum.scale, errors.scale);
    report.calibration.fits.push_back(std::move(result));
  }
  for (const auto& [name, errors] : regimes) {
    report.regimes.push_back({name, summarize_errors(errors.fitted), summarize_errors(errors.shape),
                              summarize_errors(errors.scale)});
  }
  for (const auto& [key, errors] : scales)
    report.scales.push_back({std::get<0>(key), std::get<1>(key), std::get<2>(key), summarize_errors(errors)});
  if (!options.validate) return report;
  for (std::size_t from = 0; from < groups.size(); ++from) {
    for (std::size_t to = 0; to < groups.size(); ++to) {
      const Group& a = groups[from];
      const Group& b = groups[to];
      if (from == to || a.form != b.form || a.variant != b.variant || a.form->regime == "host") continue;
      Device same = b.device;
      same.dies = a.device.dies;
      const std::vector<double>& parameters = report.calibration.fits[from].parameters;
      report.transfers.push_back({a.form->regime, a.form->op, a.hardware, b.hardware,
                                  transfer(b, parameters, same), transfer(b, parameters, b.device)});
    }
  }
  return report;
}

CostModel::CostModel(const Calibration& calibration, std::string hardware_directory)
    : calibration_(calibration), directory_(std::move(hardware_directory)) {}

const Device& CostModel::device(const CostCase& c) const {
  const auto known = devices_.find(c.hardware);
  if (known != devices_.end()) return known->second;
  try {
    return devices_.emplace(c.hardware, device_of(c, directory_)).first->second;
  } catch (const Error& error) {
    throw Error(error.code(), fmt::format("{}: {}", c.where, error.what()));
  }
}

bool CostModel::knows(const CostCase& c) const noexcept {
  return std::any_of(calibration_.fits.begin(), calibration_.fits.end(), [&](const CostFit& fit) {
    return fit.regime == c.regime && fit.op == c.op && (c.variant.empty() || fit.variant == c.variant);
  });
}

Prediction CostModel::predict(const CostCase& c) const {
  return predict(c, device(c));
}

Prediction CostModel::predict(const CostCase& c, const Device& device) const {
  const CostFit* best = nullptr;
  bool measured = false;
  for (const CostFit& fit : calibration_.fits) {
    if (fit.regime != c.regime || fit.op != c.op) continue;
    if (!c.variant.empty() && fit.variant != c.variant) continue;
    if (fit.hardware == c.hardware || is_of_gpu(fit.hardware, device.gpu)) {
      best = &fit;
      measured = true;
      break;
    }
    // What a CPU needs for a row stands on no data sheet.
    if (c.regime != "host" && (best == nullptr || fit.fitted.rows > best->fitted.rows)) best = &fit;
  }
  if (best == nullptr) {
    throw Error(
        Errc::invalid_argument,
        fmt::format("{}: no fit for {}/{}{} on {}; shunt calibrate makes one from measurements", c.where,
                    c.regime, c.op, c.variant.empty() ? "" : " of " + c.variant, c.hardware));
  }
  return {evaluate_cost(find_cost_form(c.regime, c.op), best->parameters, cost_terms(c, device)), best,
          measured};
}

}  // namespace shunt
