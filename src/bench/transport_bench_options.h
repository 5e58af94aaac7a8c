#pragma once

#include <string>
#include <vector>

#include <shunt/bench/transport_bench.h>

namespace shunt::bench {

/// Checks the options, `ranks` set, against each other and fills in what is empty. The operations to measure.
/// `notes` gets what is left out and why.
/// Errors: Errc::invalid_argument with option, value and range.
[[nodiscard]] std::vector<std::string> settle_transport_options(TransportBenchOptions& options,
                                                                std::vector<std::string>& notes);

}  // namespace shunt::bench
