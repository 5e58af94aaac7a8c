#pragma once

#include <shunt/bench/alltoall_bench.h>

namespace shunt::cli {

/// Tables to stdout; on a terminal also a line of progress, which is written over and gone at the end, unless `quiet`.
[[nodiscard]] bench::BenchOutput terminal_output(bool quiet);

}  // namespace shunt::cli
