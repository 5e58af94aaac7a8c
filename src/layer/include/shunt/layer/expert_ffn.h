#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <span>
#include <string_view>
#include <vector>

#include <shunt/core/view.h>
#include <shunt/layer/matmul.h>
#include <shunt/routing/gate_network.h>

namespace shunt {

namespace detail {
class Workers;

/// Memory that only grows, for rows.
class RowMemory {
 public:
  /// At least `bytes`, at a multiple of 64; what was there is lost where it grows.
  std::byte* at_least(std::int64_t bytes) {
    if (bytes > size_) {
      memory_.reset();
      memory_.reset(
          static_cast<std::byte*>(::operator new (static_cast<std::size_t>(bytes), std::align_val_t{64})));
      size_ = bytes;
    }
    return memory_.get();
  }
  [[nodiscard]] std::byte* data() const noexcept { return memory_.get(); }

 private:
  struct Free {
    void operator()(std::byte* memory) const noexcept { ::operator delete (memory, std::align_val_t{64}); }
  };
  std::unique_ptr<std::byte, Free> memory_;
  std::int64_t size_ = 0;
};
}  // namespace detail

/// What stands between the two products of an expert; F inner elements.
enum class Activation : std::uint8_t {
  gelu,    ///< x Φ(x), exact
  silu,    ///< x σ(x)
  swiglu,  ///< silu of the first F columns times the other F
};
/// Names gelu, silu, swiglu.
/// Errors: Errc::invalid_argument on an unknown name, with the nearest one.
[[nodiscard]] Activation parse_activation(std::string_view name);
[[nodiscard]] const char* activation_name(Activation activation) noexcept;

struct ExpertFfnConfig {
  std::int64_t hidden = 1;        ///< H
  std::int64_t ffn = 1;           ///< F
  std::int32_t num_experts = 1;   ///< L, may be 0
  std::int32_t first_expert = 0;  ///< Number of the first among all, for the random weights
  Activation activation = Activation::gelu;
  bool bias = false;
  DType dtype = DType::f32;  ///< Of rows and of the weights in products: f32 or bf16
  MatmulBackend backend = MatmulBackend::automatic;
  /// F', columns of the first product.
  [[nodiscard]] std::int64_t inner() const noexcept {
    return activation == Activation::swiglu ? 2 * ffn : ffn;
  }
};

/// Rows of a step, expert by expert.
struct ExpertRows {
  View1<const std::int64_t> starts;  ///< [L] first row of each expert
  View1<const std::int64_t> counts;  ///< [L] its rows
  /// Rows of an expert begin at multiples of kRowAlignment, and those up to the next one exist and are 0.
  bool padded = false;
  std::int64_t total = 0;  ///< Rows there are, padding included
};
inline constexpr std::int64_t kRowAlignment = 32;

/// Experts of one rank: y = act(x W1 + b1) W2 + b2 with W1 [H, F'], W2 [F, H], each expert its own.
/// Result:  what an expert's rows give depends on them, on their order and on nothing else: not on other experts, not on
///          threads. Products are cut into equal blocks of at most 512 rows; gradients of weights are one product over all rows.
/// Threads: one call at a time; the work is spread over `workers`.
class ExpertFfn {
 public:
  /// Weights uniform with deviation 1 / sqrt(inputs), a function of seed and expert; biases 0.
  /// Errors: Errc::invalid_argument with the size and what is allowed.
  ExpertFfn(const ExpertFfnConfig& config, std::uint64_t seed, detail::Workers& workers);

  [[nodiscard]] const ExpertFfnConfig& config() const noexcept { return config_; }
  /// w1 [L H, F'], w2 [L F, H] and, with bias, b1 [L, F'], b2 [L, H], one behind the other in parameters().
  [[nodiscard]] const std::vector<ParameterSlice>& layout() const noexcept { return layout_; }
  /// float32, whatever the dtype. After a change call parameters_changed().
  [[nodiscard]] std::vector<float>& parameters() noexcept { return parameters_; }
  [[nodiscard]] const std::vector<float>& parameters() const noexcept { return parameters_; }
  void parameters_changed();

  /// Writes y [rows, H] from x [rows, H], and keeps what backward needs.
  void forward(const Rows& x, const ExpertRows& rows, const MutableRows& y);

  /// Gradients of a loss, given `grad` [rows, H] by weight * y of each row: `weights` [rows], null for 1, and 0 in padding.
  /// Writes grad_x [rows, H] and, where they are asked for, `dots` [rows], the gradients by the weights; writes (or, with
  /// accumulate, adds to) grad_parameters. x and rows are those of the last forward; one backward for each.
  void backward(const Rows& x, const ExpertRows& rows, const Rows& grad, const float* weights,
                const MutableRows& grad_x, float* dots, std::span<float> grad_parameters, bool accumulate);

 private:
  struct Block {
    std::int32_t expert;
    std::int64_t first, rows;  ///< Of all rows
  };
  [[nodiscard]] std::vector<Block> blocks_of(const ExpertRows& rows) const;
  [[nodiscard]] std::int64_t rounded(std::int64_t rows, const ExpertRows& of) const;
  [[nodiscard]] const void* weight(std::size_t slice, std::int32_t expert) const;
  void weight_gradients(const Rows& x, const ExpertRows& rows, const Rows& grad, const float* weights,
                        std::span<float> grad_parameters, bool accumulate);

  ExpertFfnConfig config_;
  detail::Workers& workers_;
  std::vector<ParameterSlice> layout_;
  std::vector<float> parameters_;
  detail::RowMemory narrow_;    ///< bf16: the weights as products read them
  detail::RowMemory before_;    ///< [rows, F'] before the activation; in backward its gradient
  detail::RowMemory weighted_;  ///< [rows, F] weight * activation, for the gradient of W2
  std::vector<detail::RowMemory> scratch_;
};

}  // namespace shunt
