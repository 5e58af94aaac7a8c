#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include <shunt/core/dtype.h>

namespace shunt::bench {

/// Sizes of C [m, n] = A [m, k] B [k, n]; C is float32.
struct GemmShape {
  std::int64_t m = 1;
  std::int64_t n = 1;
  std::int64_t k = 1;
  DType dtype = DType::f32;  ///< Of A and B: f32 or bf16
  [[nodiscard]] std::int64_t flops() const noexcept { return 2 * m * n * k; }
  [[nodiscard]] std::int64_t bytes() const noexcept {
    return (m * k + k * n) * dtype_bytes(dtype) + m * n * 4;
  }
};

/// "128 x 512 x 7168, float32": m, n, k and the dtype.
[[nodiscard]] std::string gemm_name(const GemmShape& shape);

/// Element `index` (row-major) of A or B: a multiple of 1/8 in [-1, 1). Products and sums of up to 2^18 of them are exact
/// in float32, in any order, so that C has one right value.
enum class GemmInput : std::uint8_t { a, b };
[[nodiscard]] float gemm_element(GemmInput matrix, std::int64_t index) noexcept;

/// What an element of C must be.
[[nodiscard]] double gemm_result(const GemmShape& shape, std::int64_t row, std::int64_t column) noexcept;

/// Compares elements all over C, the corners among them, with gemm_result(). `read(row, column)` gives an element.
/// Result: empty, or which one is wrong and how.
[[nodiscard]] std::string check_gemm(const GemmShape& shape,
                                     const std::function<float(std::int64_t, std::int64_t)>& read);

/// A matrix product of one rank, its matrices in place. One thread, or one stream, computes it.
class Gemm {
 public:
  virtual ~Gemm() = default;
  /// Computes C; on a GPU starts to.
  virtual void run() = 0;
  /// Overwrites C, so that only a new product passes check().
  virtual void poison() = 0;
  /// As check_gemm(), once everything before has ended.
  [[nodiscard]] virtual std::string check() = 0;
};

/// Makes a product; `stream` is a cudaStream_t, null on the CPU.
/// Errors: Errc::unavailable with the reason, Errc::out_of_memory.
using MakeGemm = std::function<std::unique_ptr<Gemm>(const GemmShape& shape, void* stream)>;

/// Why oneDNN cannot compute products here; empty where it can.
[[nodiscard]] std::string onednn_unavailable();
/// "oneDNN 2.6.3"; empty where this build has none.
[[nodiscard]] std::string onednn_version();
/// By oneDNN, on the calling thread alone, B in the layout that oneDNN likes best.
[[nodiscard]] std::unique_ptr<Gemm> make_onednn_gemm(const GemmShape& shape, void* stream);

}  // namespace shunt::bench
