#pragma once

#include <shunt/bench/report.h>

namespace shunt::bench {

/// What was run: from "transport" to "seed".
void set_point(Record& record, const PointResult& result);

/// How long a phase took: from "rounds" to "std_us".
void set_times(Record& record, const PhaseResult& phase);

}  // namespace shunt::bench
