#pragma once

#include <cstdint>
#include <string>

#include <shunt/core/dtype.h>

namespace shunt::bench {

/// libtorch as a peer in the same process, in a plugin (src/plugins/torch*.cpp, libshunt_torch.so), so that the program
/// neither links nor needs it. Only plain types cross: libtorch may have been built with another ABI of std::string.
///
/// A work of libtorch on memory of the caller, which must outlive it.
/// Threads: one at a time.
class TorchWork {
 public:
  TorchWork() = default;
  virtual ~TorchWork() = default;
  TorchWork(const TorchWork&) = delete;
  TorchWork& operator=(const TorchWork&) = delete;
  /// Runs one of its steps. Null, or what libtorch said, which stays until the next call.
  [[nodiscard]] virtual const char* run(std::int32_t step) noexcept = 0;
  /// How a step is written in libtorch, such as "index_select"; stays.
  [[nodiscard]] virtual const char* formulation(std::int32_t step) const noexcept = 0;
};

/// Pack tokens by expert (step 0), and sum up the rows of each token (step 1). T tokens, K choices, E experts, H hidden.
struct TorchMoves {
  std::int64_t tokens = 0, hidden = 0;
  std::int32_t num_experts = 1, top_k = 1;
  DType dtype = DType::f32;           ///< f32, f16 or bf16: of x, rows and out
  std::int64_t capacity = 0;          ///< Rows an expert takes, first come first served; 0: all
  const void* x = nullptr;            ///< [T, H]
  const std::int32_t* ids = nullptr;  ///< [T, K]; -1: none
  const float* weights = nullptr;     ///< [T, K]; null: rows are added up
  void* rows = nullptr;               ///< [T K, H], written by pack, by expert and inside it by token
  void* out = nullptr;                ///< [T, H], written by combine
  std::int32_t threads = 1;
};
class TorchMovesWork : public TorchWork {
 public:
  static constexpr std::int32_t kPack = 0, kCombine = 1;
  /// The choice t K + k of each of the `count` rows that the last pack wrote.
  [[nodiscard]] virtual const std::int64_t* choices(std::int64_t& count) noexcept = 0;
};

/// The K largest of each row of logits, and their softmax (step 0).
struct TorchTopK {
  std::int64_t tokens = 0;
  std::int32_t num_experts = 1, top_k = 1;
  DType dtype = DType::f32;
  const void* logits = nullptr;  ///< [T, E]
  std::int64_t* ids = nullptr;   ///< [T, K]; of equal logits any comes first
  float* weights = nullptr;      ///< [T, K]
  std::int32_t threads = 1;
};

/// The MoE layer with the gate softk and a linear router, by autograd. The parameters lie as those of MoeLayer and are
/// copied; gradients are written the same way by the step kRead.
struct TorchLayer {
  static constexpr std::int32_t kForward = 0, kBackward = 1, kRead = 2;
  std::int64_t tokens = 0, hidden = 0, ffn = 0;
  std::int32_t num_experts = 1, top_k = 1, shared_experts = 0;
  std::int32_t activation = 0;  ///< gelu, silu, swiglu
  bool bias = false;
  bool backward = true;            ///< false: forward alone, without a graph
  DType dtype = DType::f32;        ///< f32 or bf16: of x, out, their gradients and the experts' weights
  const void* x = nullptr;         ///< [T, H]
  const void* grad_out = nullptr;  ///< [T, H]
  const float* router = nullptr;   ///< [H, E], then the bias [E]
  const float* experts = nullptr;
  const float* shared = nullptr;
  void* out = nullptr;     ///< [T, H]
  void* grad_x = nullptr;  ///< [T, H]
  float* grad_router = nullptr;
  float* grad_experts = nullptr;
  float* grad_shared = nullptr;
  std::int32_t threads = 1;
};

/// What the plugin offers. make_* return null and set `error` (which stays until the next call) where libtorch refuses; the
/// caller owns the work. Making one sets the threads of libtorch, for all works.
struct TorchTable {
  const char* build = nullptr;    ///< kTorchBuild
  const char* version = nullptr;  ///< Of libtorch
  TorchMovesWork* (*make_moves)(const TorchMoves& moves, const char*& error) noexcept = nullptr;
  TorchWork* (*make_top_k)(const TorchTopK& top_k, const char*& error) noexcept = nullptr;
  TorchWork* (*make_layer)(const TorchLayer& layer, const char*& error) noexcept = nullptr;
};
/// To be raised with every change of the above.
inline constexpr const char* kTorchBuild = "shunt torch plugin 2";
/// Name of the plugin's function, extern "C", that returns its const TorchTable*.
inline constexpr const char* kTorchFunction = "shunt_torch_plugin";

/// Loads the plugin at the first call.
/// Errors: Errc::unavailable with what is missing and how to get it.
[[nodiscard]] const TorchTable& torch_plugin();
/// Why there is no plugin; empty where there is one.
[[nodiscard]] std::string torch_unavailable_reason();

}  // namespace shunt::bench
