#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <shunt/cluster/cost_model.h>

namespace shunt {

/// One measured column of a file.
struct MeasuredColumn {
  std::string op;          ///< Prefix of its predictions where a file has several; empty where it has one
  std::size_t column = 0;  ///< Index in the header
};

/// Measurements of one file. Cases are in the order of the rows and, inside a row, of the columns.
struct MeasurementFile {
  std::string path;
  std::string format;  ///< deepep_low_latency, deepep_normal, trtllm, nccl, published, bench, nccl-tests
  std::string sha256;  ///< Of the whole file, hexadecimal
  std::vector<std::string> header;
  std::vector<std::vector<std::string>> rows;  ///< As text, as they stood there
  std::vector<std::int64_t> lines;             ///< Line of each row, from 1
  std::vector<MeasuredColumn> measured;        ///< Latency columns
  std::vector<CostCase> cases;                 ///< rows.size() * measured.size()
  /// Columns that count to no sum, and their cases, rows.size() * beside.size(): the notifications of DeepEP's normal
  /// mode, which stand apart from the kernels. Where a measurement is 0 there is no such call (one node).
  std::vector<MeasuredColumn> beside;
  std::vector<CostCase> beside_cases;
};

/// Reads a file of measurements; the format is seen from its header (docs/formats.md, "Measurements"):
/// the CSV files of data/measured, `shunt bench alltoall --jsonl`, and what nccl-tests prints.
/// `hardware` names the machine where the file does not (nccl-tests); bench files name their CPU.
/// A latency may be left empty: then there is a case without a measurement.
/// Errors: Errc::io with file:line for a missing file, unknown or missing columns (with the nearest), cells that are
///         not numbers, and numbers outside their range; Errc::invalid_argument where `hardware` is needed.
[[nodiscard]] MeasurementFile read_measurements(const std::string& path, const std::string& hardware = {});

}  // namespace shunt
