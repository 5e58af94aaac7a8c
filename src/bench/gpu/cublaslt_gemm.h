#pragma once

#include <memory>
#include <string>

#include <shunt/bench/gemm.h>

namespace shunt::bench {

/// Why cuBLASLt cannot be used here; empty where it can. Initialises nothing of CUDA.
[[nodiscard]] std::string cublaslt_unavailable();
/// By cuBLASLt on `stream`, a cudaStream_t of the current device.
[[nodiscard]] std::unique_ptr<Gemm> make_cublaslt_gemm(const GemmShape& shape, void* stream);

}  // namespace shunt::bench
