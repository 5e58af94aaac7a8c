#pragma once

#include <cstdint>
#include <string>

#include <shunt/scenario/plan.h>

namespace shunt::scenario {

/// Writes into `folder` what our benchmark moved for a test of CloudAI, which is a function of its keys alone:
/// token_matrix.txt, token_matrix_kb.txt, ucc_matrix.txt and nccl_matrix.txt.
/// Errors: Errc::io where a file cannot be written.
void write_matrices(const Case& one, std::int64_t ranks, const std::string& folder);

}  // namespace shunt::scenario
