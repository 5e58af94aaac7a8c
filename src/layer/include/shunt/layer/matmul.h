#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include <shunt/core/dtype.h>

namespace shunt {

/// Who multiplies matrices on the CPU.
enum class MatmulBackend : std::uint8_t {
  automatic,  ///< oneDNN where this build and this processor have it for the dtype, else own
  onednn,
  own,  ///< Blocked loops of this library in float32; a row of C does not depend on how many rows there are
};
/// Names automatic, onednn, own.
/// Errors: Errc::invalid_argument on an unknown name, with the nearest one.
[[nodiscard]] MatmulBackend parse_matmul_backend(std::string_view name);

/// C [m, n] = op(A) [m, k] op(B) [k, n] (+ bias, or + C). Strides are elements from one stored row to the next.
struct MatmulCall {
  std::int64_t m = 0, n = 0, k = 0;
  DType in = DType::f32;  ///< Of A and B: f32 or bf16
  DType out =
      DType::f32;  ///< Of C: f32, or bf16 where `in` is bf16; sums are made in float32 and rounded once
  const void* a = nullptr;
  std::int64_t a_stride = 0;
  bool a_transposed = false;  ///< Stored as [k, m]
  const void* b = nullptr;
  std::int64_t b_stride = 0;
  bool b_transposed = false;  ///< Stored as [n, k]
  void* c = nullptr;
  std::int64_t c_stride = 0;
  const float* bias = nullptr;  ///< [n], added to each row; not together with accumulate
  bool accumulate = false;      ///< C keeps what it holds and gets the product added; f32 only
};

/// Multiplies on the calling thread alone.
/// Result:  a function of the operands and sizes: the same call gives the same bits on one machine. bf16 by oneDNN reuses
///          what was prepared for the same sizes and strides, so callers should round m and k to few values.
/// Threads: any number side by side.
/// Errors:  Errc::invalid_argument on sizes and dtypes; Errc::unavailable where `backend` is onednn and cannot.
void matmul(const MatmulCall& call, MatmulBackend backend = MatmulBackend::automatic);

/// Why oneDNN cannot multiply here; empty where it can.
[[nodiscard]] std::string onednn_missing();
/// "oneDNN 2.6.3"; empty where this build has none.
[[nodiscard]] std::string onednn_name();
/// What `automatic` means here: "oneDNN 2.6.3" or "own".
[[nodiscard]] std::string matmul_name(MatmulBackend backend);

/// While it lives, oneDNN computes on the calling thread alone: it spreads work over OpenMP's threads, whose number is one
/// of the calling thread, and libgomp read the environment when it was loaded, so that a variable would come too late.
class OneThread {
 public:
  OneThread();
  ~OneThread();
  OneThread(const OneThread&) = delete;
  OneThread& operator=(const OneThread&) = delete;

 private:
  int before_ = 0;  ///< 0: no OpenMP in this process
};

}  // namespace shunt
