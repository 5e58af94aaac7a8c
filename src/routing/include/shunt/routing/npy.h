#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include <shunt/routing/routing.h>

namespace shunt {

/// An array read from a .npy file (format versions 1.0 - 3.0, C order, little endian).
struct NpyArray {
  std::string descr;  ///< Element type as numpy writes it: "<f4", "<f2", "<i8", "|u1", "<u2", "|V2", …
  std::vector<std::int64_t> shape;  ///< Empty for a single number
  std::vector<std::byte> data;
  [[nodiscard]] std::int64_t num_elements() const noexcept;
};

/// Element types are b, i, u, f, c and V of a fixed size; no records, strings or Python objects.
/// Errors: Errc::io with the path and what is wrong (magic, version, header, Fortran order, big endian,
///         length).
[[nodiscard]] NpyArray read_npy(const std::string& path);

/// Tokens and routing dumped from a real model.
struct ModelDump {
  std::int64_t num_tokens = 0;  ///< T
  std::int64_t hidden = 0;      ///< H
  std::vector<float> x;         ///< [T, H]
  Routing routing;              ///< [T, K]
};

/// Reads DIR/x.npy ([T, H] f4, f2, or u2/V2 holding bfloat16 bits), DIR/topk_idx.npy ([T, K] i4, i8) and
/// DIR/topk_weights.npy ([T, K] f4, f2, f8). 1 <= H, 1 <= K <= num_experts.
/// Errors: Errc::io (file), Errc::invalid_argument (element types, shapes that disagree, ids outside
///         [-1, num_experts), repeated ids, NaN or infinite values), naming file, token and what is allowed.
[[nodiscard]] ModelDump read_model_dump(const std::string& directory, std::int32_t num_experts);

}  // namespace shunt
