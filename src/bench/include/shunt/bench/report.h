#pragma once

#include <span>
#include <string>
#include <vector>

#include <shunt/bench/options.h>
#include <shunt/bench/results.h>
#include <shunt/core/record.h>

namespace shunt::bench {

/// Table of one point for people: one line per method in the main placement class, ratios to the floors, the
/// bytes formula, what was not seen or not run and why.
[[nodiscard]] std::string format_point(const PointResult& result);

/// One plain sentence or two per shape and routing: which method to use, by how much, how far from the floor.
[[nodiscard]] std::string format_conclusion(std::span<const PointResult> results);

/// The TSV: a comment line with the units, a line of names, one line per point and class. Columns:
/// docs/bench-alltoall.md.
[[nodiscard]] std::string format_tsv(std::span<const PointResult> results);
/// Its first two lines, and the lines of one point, for files that grow point by point. `methods`: names of
/// which the columns behind the first 35 are made, in order.
[[nodiscard]] std::string tsv_header(std::span<const std::string> methods);
[[nodiscard]] std::string tsv_rows(const PointResult& result, std::span<const std::string> methods);

/// The table of pplx-kernels' bench_all_to_all, with standard deviations behind: its first two lines, and a point's.
[[nodiscard]] std::string pplx_tsv_header();
[[nodiscard]] std::string pplx_tsv_row(const PointResult& result);

/// One record per method, phase, point and class, as docs/formats.md "Benchmark results" says.
[[nodiscard]] std::vector<Record> result_records(const PointResult& result);

/// Lines of `shunt bench alltoall --list`.
[[nodiscard]] std::string format_methods(std::span<const MethodSpec> methods);

}  // namespace shunt::bench
