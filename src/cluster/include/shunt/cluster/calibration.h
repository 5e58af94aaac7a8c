#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include <shunt/cluster/cost_model.h>
#include <shunt/cluster/measurement.h>

namespace shunt {

/// Absolute errors |predicted / measured - 1| of some rows, in percent.
struct ErrorSummary {
  std::int64_t rows = 0;  ///< 0: nothing could be left out, the others are 0 too
  double median_pct = 0;
  double p90_pct = 0;
  double max_pct = 0;
};

/// Summary of errors in percent, in any order.
[[nodiscard]] ErrorSummary summarize_errors(std::vector<double> errors_pct);

/// Parameters of one formula on one kind of machine.
struct CostFit {
  std::string regime, op, variant, hardware;
  std::vector<double> parameters;  ///< In the order of the formula's list
  ErrorSummary fitted;             ///< Of the rows that were fitted
  ErrorSummary shape_left_out;     ///< Each shape predicted by a fit without it
  ErrorSummary scale_left_out;     ///< Each number of nodes or ranks predicted by a fit without it
};

/// A file that a calibration used.
struct CalibrationSource {
  std::string file;  ///< Name without directory
  std::string sha256;
  std::int64_t rows = 0;  ///< Measured values taken from it
};

/// All fits of one calibration, as `shunt calibrate` stores them (docs/formats.md, "Fit").
struct Calibration {
  std::string shunt_version;
  std::string date;  ///< As given; empty where none was
  std::vector<CalibrationSource> sources;
  std::vector<CostFit> fits;  ///< Sorted by regime, op, variant, hardware
};

struct CalibrationOptions {
  std::string hardware_directory;
  bool validate = true;  ///< Cross-validation, which takes most of the time
  std::string date;
};

/// Errors of one regime over all its formulas and machines; and of predicting one machine by the parameters of another
/// with only its data sheet changed.
struct RegimeErrors {
  std::string name;
  ErrorSummary fitted, shape_left_out, scale_left_out;
};
struct ScaleErrors {
  std::string regime, op, scale;
  ErrorSummary left_out;
};
struct TransferErrors {
  std::string regime, op, from, to;
  ErrorSummary same_latency;  ///< Only rates and multiprocessors of the data sheet
  ErrorSummary with_dies;     ///< And latencies by the square root of the dies
};
struct CalibrationReport {
  Calibration calibration;
  std::vector<RegimeErrors> regimes;
  std::vector<ScaleErrors> scales;  ///< One for each regime, op and left-out number of nodes or ranks
  std::vector<TransferErrors> transfers;
};

/// Fits every formula to the measurements of its regime, op, variant and hardware, and tries the fits on rows that
/// they have not seen. Deterministic: equal files give equal bytes.
/// Errors: Errc::invalid_argument for a case without a measurement, unknown hardware, or no case at all.
[[nodiscard]] CalibrationReport calibrate(const std::vector<MeasurementFile>& files,
                                          const CalibrationOptions& options);

/// Text of a fit file, and back.
/// Errors: Errc::io with file:line:column for what is no fit file, with parameters that no formula has, or values out
///         of range.
[[nodiscard]] std::string to_toml(const Calibration& calibration);
[[nodiscard]] Calibration read_calibration(const std::string& path);

/// Path of the fit that comes with Shunt: measured.toml in $SHUNT_FITS where set, else among the presets (fits/).
[[nodiscard]] std::string default_calibration_path();

/// A predicted time.
struct Prediction {
  double us = 0;
  const CostFit* fit = nullptr;  ///< Whose parameters; its hardware may be another than the case's
  bool measured = false;         ///< The fit is of the case's own GPU
};

/// Predicts cases from the fits of a calibration.
/// Ownership: borrows `calibration`, which must outlive it.
/// Threads:   calls on one object must not overlap (it remembers the data sheets that it has read).
class CostModel {
 public:
  CostModel(const Calibration& calibration, std::string hardware_directory);

  /// Takes the fit of the same formula, variant and GPU; else, with the case's data sheet, that of the hardware
  /// with the most fitted rows. An empty variant takes any.
  /// Errors: Errc::invalid_argument where no fit has this formula (naming the case), or the hardware is unknown.
  [[nodiscard]] Prediction predict(const CostCase& cost_case) const;
  /// The same with a data sheet in hand; `cost_case.hardware` is only for messages.
  [[nodiscard]] Prediction predict(const CostCase& cost_case, const Device& device) const;
  /// Whether a fit has the formula and variant of this case.
  [[nodiscard]] bool knows(const CostCase& cost_case) const noexcept;

 private:
  [[nodiscard]] const Device& device(const CostCase& cost_case) const;

  const Calibration& calibration_;
  std::string directory_;
  mutable std::map<std::string, Device> devices_;
};

/// The rows of `file` with predictions beside every measured column: `predicted_us` and `error_pct` (with the prefix of
/// the column where there are several, then both again for the sum of the columns), as CSV or as one JSON document.
/// The error is 100 (predicted / measured - 1), empty or null where nothing was measured.
[[nodiscard]] std::string predicted_csv(const MeasurementFile& file, const CostModel& model);
[[nodiscard]] std::string predicted_json(const MeasurementFile& file, const CostModel& model);

}  // namespace shunt
