#include <shunt/layer/expert_ffn.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <string>

#include <fmt/format.h>

#include <shunt/core/error.h>
#include <shunt/core/nearest.h>
#include <shunt/core/random.h>
#include <shunt/layout/partition.h>

#include "activations.h"
#include "workers.h"

namespace shunt {
namespace {

/// Most rows of a product: enough to be worth the reading of W1 and W2, few enough to stay in a cache between the two.
constexpr std::int64_t kBlockRows = 512;
/// Rows of a weight's gradient that one task makes in float32. In bf16 it makes all: oneDNN's product on the matrix unit
/// wants a transposed matrix that is dense.
constexpr std::int64_t kWeightRows = 512;

enum Slice : std::size_t { kW1, kW2, kB1, kB2 };

std::size_t at(std::int64_t i) {
  return static_cast<std::size_t>(i);
}

const std::vector<std::string>& activation_names() {
  static const std::vector<std::string> names = {"gelu", "silu", "swiglu"};
  return names;
}

}  // namespace

Activation parse_activation(std::string_view name) {
  const auto& known = activation_names();
  for (std::size_t i = 0; i < known.size(); ++i)
    if (name == known[i]) return static_cast<Activation>(i);
  throw Error(Errc::invalid_argument,
              fmt::format("activation \"{}\" is not known; did you mean {}? Known are {}", name,
                          nearest_name(std::string(name), known), fmt::join(known, ", ")));
}

const char* activation_name(Activation activation) noexcept {
  return activation == Activation::gelu ? "gelu" : activation == Activation::silu ? "silu" : "swiglu";
}

ExpertFfn::ExpertFfn(const ExpertFfnConfig& config, std::uint64_t seed, detail::Workers& workers)
    : config_(config), workers_(workers), scratch_(at(workers.threads())) {
  const auto within = [](const char* what, std::int64_t value, std::int64_t least) {
    constexpr std::int64_t kMost = std::int64_t{1} << 20;
    if (value < least || value > kMost)
      throw Error(Errc::invalid_argument,
                  fmt::format("experts: {} {}; allowed are {} to {}", value, what, least, kMost));
  };
  within("elements per token (hidden)", config.hidden, 1);
  within("inner elements (ffn)", config.ffn, 1);
  within("experts", config.num_experts, 0);
  if (config.dtype != DType::f32 && config.dtype != DType::bf16)
    throw Error(Errc::invalid_argument,
                fmt::format("experts of {}; allowed are float32 and bfloat16", dtype_name(config.dtype)));
  std::int64_t offset = 0;
  const auto add = [this, &offset](const char* name, std::int64_t rows, std::int64_t cols) {
    layout_.push_back({name, offset, rows * config_.num_experts, cols});
    offset += rows * config_.num_experts * cols;
  };
  add("w1", config.hidden, config.inner());
  add("w2", config.ffn, config.hidden);
  if (config.bias) {
    add("b1", 1, config.inner());
    add("b2", 1, config.hidden);
  }
  parameters_.resize(at(offset));
  workers_.run(config.num_experts, [&](std::int64_t expert, int) {
    Random random(seed, static_cast<std::uint64_t>(config_.first_expert + expert));
    const auto fill = [&random](float* weights, std::int64_t inputs, std::int64_t outputs) {
      const float bound = std::sqrt(3.0F / static_cast<float>(inputs));
      for (std::int64_t i = 0; i < inputs * outputs; ++i) {
        const auto whole = static_cast<std::int32_t>(random.next_u32());
        weights[i] = bound * (static_cast<float>(whole) * 0x1p-31F);
      }
    };
    const std::int64_t inner = config_.inner();
    fill(parameters_.data() + expert * config_.hidden * inner, config_.hidden, inner);
    fill(parameters_.data() + layout_[kW2].offset + expert * config_.ffn * config_.hidden, config_.ffn,
         config_.hidden);
  });
  parameters_changed();
}

void ExpertFfn::parameters_changed() {
  if (config_.dtype == DType::f32) return;
  constexpr std::int64_t kPart = std::int64_t{1} << 20;
  const auto all = static_cast<std::int64_t>(parameters_.size());
  std::byte* const to = narrow_.at_least(all * 2);
  workers_.run((all + kPart - 1) / kPart, [&](std::int64_t part, int) {
    detail::from_f32(DType::bf16, parameters_.data() + part * kPart, std::min(kPart, all - part * kPart),
                     to + part * kPart * 2);
  });
}

const void* ExpertFfn::weight(std::size_t slice, std::int32_t expert) const {
  const ParameterSlice& of = layout_[slice];
  const std::int64_t offset = of.offset + of.rows / config_.num_experts * expert * of.cols;
  if (config_.dtype == DType::f32) return parameters_.data() + offset;
  return narrow_.data() + offset * 2;
}

std::int64_t ExpertFfn::rounded(std::int64_t rows, const ExpertRows& of) const {
  // Products in bf16 are prepared for their sizes, of which there should be few.
  return of.padded && config_.dtype == DType::bf16 ? round_up(rows, kRowAlignment) : rows;
}

std::vector<ExpertFfn::Block> ExpertFfn::blocks_of(const ExpertRows& rows) const {
  std::vector<Block> blocks;
  for (std::int32_t e = 0; e < config_.num_experts; ++e) {
    const std::int64_t count = rows.counts[at(e)];
    // Of equal size: a short last one would read all weights for few rows.
    const std::int64_t parts = (count + kBlockRows - 1) / kBlockRows;
    const std::int64_t each = parts == 0 ? 1 : round_up((count + parts - 1) / parts, kRowAlignment);
    for (std::int64_t first = 0; first < count; first += each)
      blocks.push_back({e, rows.starts[at(e)] + first, std::min(each, count - first)});
  }
  return blocks;
}

void ExpertFfn::forward(const Rows& x, const ExpertRows& rows, const MutableRows& y) {
  const std::int64_t h = config_.hidden, f = config_.ffn, inner = config_.inner();
  const std::int64_t element = dtype_bytes(config_.dtype);
  const DType dtype = config_.dtype;
  std::byte* const before = before_.at_least(rows.total * inner * element);
  const std::vector<Block> blocks = blocks_of(rows);
  workers_.run(static_cast<std::int64_t>(blocks.size()), [&](std::int64_t task, int worker) {
    const Block& block = blocks[at(task)];
    const std::int64_t m = rounded(block.rows, rows);
    std::byte* const mine = before + block.first * inner * element;
    std::byte* const after = scratch_[at(worker)].at_least(kBlockRows * f * 4);
    const float* const parameters = parameters_.data();
    matmul({.m = m,
            .n = inner,
            .k = h,
            .in = dtype,
            .out = dtype,
            .a = x.row(block.first),
            .a_stride = x.row_stride_bytes / element,
            .b = weight(kW1, block.expert),
            .b_stride = inner,
            .c = mine,
            .c_stride = inner,
            .bias = config_.bias ? parameters + layout_[kB1].offset + block.expert * inner : nullptr},
           config_.backend);
    for (std::int64_t row = 0; row < m; ++row)
      detail::activate(config_.activation, dtype, mine + row * inner * element, f, after + row * f * element);
    matmul({.m = m,
            .n = h,
            .k = f,
            .in = dtype,
            .out = dtype,
            .a = after,
            .a_stride = f,
            .b = weight(kW2, block.expert),
            .b_stride = h,
            .c = y.row(block.first),
            .c_stride = y.row_stride_bytes / element,
            .bias = config_.bias ? parameters + layout_[kB2].offset + block.expert * h : nullptr},
           config_.backend);
  });
}

void ExpertFfn::backward(const Rows& x, const ExpertRows& rows, const Rows& grad, const float* weights,
                         const MutableRows& grad_x, float* dots, std::span<float> grad_parameters,
                         bool accumulate) {
  if (grad_parameters.size() != parameters_.size())
    throw Error(Errc::invalid_argument, fmt::format("experts: gradients of {} parameters, but there are {}",
                                                    grad_parameters.size(), parameters_.size()));
  const std::int64_t h = config_.hidden, f = config_.ffn, inner = config_.inner();
  const DType dtype = config_.dtype;
  const std::int64_t element = dtype_bytes(dtype);
  std::byte* const before = before_.data();
  std::byte* const weighted = weighted_.at_least(rows.total * f * element);
  const std::vector<Block> blocks = blocks_of(rows);
  workers_.run(static_cast<std::int64_t>(blocks.size()), [&](std::int64_t task, int worker) {
    const Block& block = blocks[at(task)];
    const std::int64_t m = rounded(block.rows, rows);
    auto* const grad_after = reinterpret_cast<float*>(scratch_[at(worker)].at_least(kBlockRows * f * 4));
    std::byte* const mine = before + block.first * inner * element;
    // grad W2' without the weight: its product with the activation is the gradient by the weight, so that y itself is
    // not needed.
    matmul({.m = m,
            .n = f,
            .k = h,
            .in = dtype,
            .out = DType::f32,
            .a = grad.row(block.first),
            .a_stride = grad.row_stride_bytes / element,
            .b = weight(kW2, block.expert),
            .b_stride = h,
            .b_transposed = true,
            .c = grad_after,
            .c_stride = f},
           config_.backend);
    const float* const b2 =
        config_.bias ? parameters_.data() + layout_[kB2].offset + block.expert * h : nullptr;
    for (std::int64_t i = 0; i < block.rows; ++i) {
      const std::int64_t row = block.first + i;
      float dot = detail::activate_backward(config_.activation, dtype, mine + i * inner * element,
                                            grad_after + i * f, f, weights == nullptr ? 1.0F : weights[row],
                                            weighted + row * f * element);
      if (b2 != nullptr && dots != nullptr) dot += detail::dot_row(dtype, grad.row(row), h, b2);
      if (dots != nullptr) dots[row] = dot;
    }
    const auto padding = at(m - block.rows);
    std::memset(mine + block.rows * inner * element, 0, padding * at(inner * element));
    std::memset(weighted + (block.first + block.rows) * f * element, 0, padding * at(f * element));
    matmul({.m = m,
            .n = h,
            .k = inner,
            .in = dtype,
            .out = dtype,
            .a = mine,
            .a_stride = inner,
            .b = weight(kW1, block.expert),
            .b_stride = inner,
            .b_transposed = true,
            .c = grad_x.row(block.first),
            .c_stride = grad_x.row_stride_bytes / element},
           config_.backend);
  });
  weight_gradients(x, rows, grad, weights, grad_parameters, accumulate);
}

void ExpertFfn::weight_gradients(const Rows& x, const ExpertRows& rows, const Rows& grad,
                                 const float* weights, std::span<float> grad_parameters, bool accumulate) {
  const std::int64_t h = config_.hidden, f = config_.ffn, inner = config_.inner();
  const std::int64_t element = dtype_bytes(config_.dtype);
  const std::byte* const before = before_.data();
  const std::byte* const weighted = weighted_.data();
  struct Part {
    std::int32_t expert;
    Slice slice;
    std::int64_t first, rows;
  };
  std::vector<Part> parts;
  const bool whole = config_.dtype == DType::bf16;
  for (std::int32_t e = 0; e < config_.num_experts; ++e) {
    const auto cut = [&](Slice slice, std::int64_t all) {
      const std::int64_t each = whole ? all : kWeightRows;
      for (std::int64_t i = 0; i < all; i += each) parts.push_back({e, slice, i, std::min(each, all - i)});
    };
    cut(kW1, h);
    cut(kW2, f);
    if (!config_.bias) continue;
    parts.push_back({e, kB1, 0, 1});
    parts.push_back({e, kB2, 0, 1});
  }
  workers_.run(static_cast<std::int64_t>(parts.size()), [&](std::int64_t task, int) {
    const Part& part = parts[at(task)];
    const std::int64_t first = rows.starts[at(part.expert)], count = rows.counts[at(part.expert)];
    const ParameterSlice& slice = layout_[part.slice];
    float* const to = grad_parameters.data() + slice.offset +
                      (slice.rows / config_.num_experts * part.expert + part.first) * slice.cols;
    // In bf16 to zeros and an addition, which oneDNN does faster than a product that overwrites.
    if (!accumulate && (count == 0 || whole || part.slice == kB1 || part.slice == kB2))
      std::fill(to, to + part.rows * slice.cols, 0.0F);
    if (count == 0) return;
    if (part.slice == kB1 || part.slice == kB2) {
      for (std::int64_t row = first; row < first + count; ++row) {
        if (part.slice == kB1)
          detail::add_row(config_.dtype, before + row * inner * element, inner, 1.0F, to);
        else
          detail::add_row(config_.dtype, grad.row(row), h, weights == nullptr ? 1.0F : weights[row], to);
      }
      return;
    }
    const bool one = part.slice == kW1;
    matmul({.m = part.rows,
            .n = slice.cols,
            .k = rounded(count, rows),
            .in = config_.dtype,
            .out = DType::f32,
            .a = one ? x.row(first) + part.first * element : weighted + (first * f + part.first) * element,
            .a_stride = one ? x.row_stride_bytes / element : f,
            .a_transposed = true,
            .b = one ? before + first * inner * element : grad.row(first),
            .b_stride = one ? inner : grad.row_stride_bytes / element,
            .c = to,
            .c_stride = slice.cols,
            .accumulate = accumulate || whole},
           config_.backend);
  });
}

}  // namespace shunt
