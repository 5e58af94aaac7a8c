#include "checks.h"

#include <algorithm>
#include <cstdint>

#include <fmt/format.h>

#include <shunt/core/error.h>

#include "plan_sizes.h"

namespace shunt::cuda {
namespace {

constexpr std::int64_t kMaxRows = INT32_MAX;
/// Selections: room for a unit beyond the last one in 32 bits.
constexpr std::int64_t kMaxSelections = std::int64_t{1} << 30;

[[noreturn]] void refuse(const std::string& message) {
  throw Error(Errc::invalid_argument, message);
}

void at_least(const char* call, const char* name, std::int64_t value, std::int64_t least) {
  if (value < least)
    refuse(fmt::format("cuda::{}: {} is {}; it must be at least {}", call, name, value, least));
}

void aligned(const char* call, const char* name, const void* data, std::int64_t bytes) {
  if ((reinterpret_cast<std::uintptr_t>(data) & static_cast<std::uintptr_t>(bytes - 1)) != 0)
    refuse(
        fmt::format("cuda::{}: {} is at {}; it must be at a multiple of {} bytes", call, name, data, bytes));
}

void present(const char* call, const char* name, const void* data) {
  if (data == nullptr) refuse(fmt::format("cuda::{}: {} is null", call, name));
}

void check_limit(const char* call, LaunchLimit limit) {
  at_least(call, "max_blocks", limit.max_blocks, 0);
}

void check_tokens(const char* call, std::int64_t tokens, std::int32_t top_k) {
  at_least(call, "num_tokens", tokens, 0);
  at_least(call, "top_k", top_k, 1);
  if (tokens > kMaxSelections / top_k)
    refuse(fmt::format("cuda::{}: {} tokens of top-{} are more than the {} selections that one call numbers",
                       call, tokens, top_k, kMaxSelections));
}

void check_rows(const char* call, const char* name, const DeviceRows& rows, std::int64_t hidden, bool used) {
  const std::int64_t bytes = dtype_bytes(rows.dtype);
  if (used && hidden > 0) present(call, name, rows.data);
  aligned(call, name, rows.data, bytes);
  if (rows.stride_bytes < hidden * bytes || rows.stride_bytes % bytes != 0)
    refuse(fmt::format(
        "cuda::{}: the rows of {} are {} bytes apart; {} elements of {} need a multiple of {} from {} on",
        call, name, rows.stride_bytes, hidden, dtype_name(rows.dtype), bytes, hidden * bytes));
}

void check_scales(const char* call, const char* name, const Scales& scales, DType dtype) {
  at_least(call, "block", scales.block, 1);
  if (scales.type == ScaleType::none) return;
  if (!is_fp8(dtype))
    refuse(
        fmt::format("cuda::{}: {} belong to fp8 rows, but the dtype is {}", call, name, dtype_name(dtype)));
  present(call, name, scales.data);
  const bool columns = scales.layout == ScaleLayout::column_major;
  aligned(call, name, scales.data, columns ? 16 : scale_bytes(scales.type));
  if (!columns) return;
  at_least(call, "matrix_rows", scales.matrix_rows, 0);
  if (scales.stride < std::max<std::int64_t>(scales.matrix_rows, 1) || scales.stride % 4 != 0)
    refuse(fmt::format(
        "cuda::{}: the columns of {} are {} rows apart; allowed is a multiple of 4 that holds the {} rows "
        "of a matrix",
        call, name, scales.stride, scales.matrix_rows));
}

void check_same_scales(const char* call, const Scales& from, const Scales& to) {
  if (from.type != to.type || (from.type != ScaleType::none && from.block != to.block))
    refuse(fmt::format(
        "cuda::{}: scales are copied, but their type or block differs between the rows read and written",
        call));
}

bool is_wide(DType dtype) {
  return dtype == DType::f32 || dtype == DType::f16 || dtype == DType::bf16;
}

}  // namespace

std::int64_t scale_buffer_bytes(const Scales& scales, std::int64_t rows, std::int64_t hidden) {
  if (scales.type == ScaleType::none || rows == 0) return 0;
  const std::int64_t num_scales = (hidden + scales.block - 1) / scales.block;
  if (scales.layout == ScaleLayout::row_major) return rows * num_scales * scale_bytes(scales.type);
  const std::int64_t columns = scales.type == ScaleType::f32 ? num_scales : (num_scales + 3) / 4;
  const std::int64_t matrices =
      scales.matrix_rows == 0 ? 1 : (rows + scales.matrix_rows - 1) / scales.matrix_rows;
  return matrices * columns * scales.stride * 4;
}

std::int64_t plan_workspace_bytes(const PlanInput& input) {
  detail::check(input);
  return detail::PlanSizes(input).bytes;
}

namespace detail {

void check(const PlanInput& input) {
  constexpr const char* kCall = "make_plan";
  const Selections& s = input.selections;
  check_tokens(kCall, s.num_tokens, s.top_k);
  at_least(kCall, "num_experts", input.num_experts, 1);
  at_least(kCall, "alignment", input.alignment, 1);
  at_least(kCall, "rows_per_expert", input.rows_per_expert, 0);
  at_least(kCall, "max_rows", input.max_rows, 0);
  const std::int64_t selections = s.num_tokens * s.top_k;
  const std::int64_t blocks = std::min<std::int64_t>(selections, input.num_experts);
  const bool padded = input.rows_per_expert > 0;
  if (input.max_rows > kMaxRows || input.rows_per_expert > kMaxRows || input.alignment > kMaxRows ||
      (padded ? input.num_experts * input.rows_per_expert : selections + blocks * (input.alignment - 1)) >
          kMaxRows)
    refuse(fmt::format(
        "cuda::{}: {} selections of {} experts with alignment {}, rows_per_expert {} and max_rows {} may "
        "number more than {} rows",
        kCall, selections, input.num_experts, input.alignment, input.rows_per_expert, input.max_rows,
        kMaxRows));
  if (padded && input.max_rows < input.num_experts * input.rows_per_expert)
    refuse(fmt::format("cuda::{}: max_rows is {}, but {} experts of {} rows need {}", kCall, input.max_rows,
                       input.num_experts, input.rows_per_expert, input.num_experts * input.rows_per_expert));
}

void check(const PlanInput& input, const Plan& plan, const void* workspace, LaunchLimit limit) {
  constexpr const char* kCall = "make_plan";
  check_limit(kCall, limit);
  check(input);
  const std::int64_t selections = input.selections.num_tokens * input.selections.top_k;
  if (selections > 0) present(kCall, "ids", input.selections.ids);
  if (selections > 0) present(kCall, "positions", plan.positions);
  present(kCall, "counts", plan.counts);
  present(kCall, "starts", plan.starts);
  present(kCall, "status", plan.status);
  present(kCall, "workspace", workspace);
  aligned(kCall, "workspace", workspace, 16);
}

void check(const Gather& g, LaunchLimit limit) {
  constexpr const char* kCall = "gather";
  check_limit(kCall, limit);
  check_tokens(kCall, g.num_tokens, g.top_k);
  at_least(kCall, "hidden", g.hidden, 0);
  check_rows(kCall, "from", g.from, g.hidden, g.num_tokens > 0);
  check_rows(kCall, "to", g.to, g.hidden, g.num_tokens > 0);
  check_scales(kCall, "scales", g.scales, g.to.dtype);
  check_scales(kCall, "from_scales", g.from_scales, g.from.dtype);
  if (g.positions == nullptr && g.top_k != 1 && g.num_tokens > 0)
    refuse(fmt::format("cuda::{}: positions is null, which is allowed with top_k 1 only, not {}", kCall,
                       g.top_k));
  if (g.from.dtype == g.to.dtype) return check_same_scales(kCall, g.from_scales, g.scales);
  if (!is_wide(g.from.dtype) || !is_fp8(g.to.dtype))
    refuse(fmt::format(
        "cuda::{}: {} does not become {}; allowed: float32, float16 or bfloat16 to fp8, and equal dtypes",
        kCall, dtype_name(g.from.dtype), dtype_name(g.to.dtype)));
}

void check(const Scatter& s, LaunchLimit limit) {
  constexpr const char* kCall = "scatter";
  check_limit(kCall, limit);
  at_least(kCall, "num_rows", s.num_rows, 0);
  at_least(kCall, "hidden", s.hidden, 0);
  if (s.num_rows > 0) present(kCall, "destinations", s.destinations);
  check_rows(kCall, "from", s.from, s.hidden, s.num_rows > 0);
  check_rows(kCall, "to", s.to, s.hidden, s.num_rows > 0);
  if (s.from.dtype != s.to.dtype)
    refuse(fmt::format("cuda::{}: rows of {} cannot go to rows of {}", kCall, dtype_name(s.from.dtype),
                       dtype_name(s.to.dtype)));
  check_scales(kCall, "from_scales", s.from_scales, s.from.dtype);
  check_scales(kCall, "to_scales", s.to_scales, s.to.dtype);
  check_same_scales(kCall, s.from_scales, s.to_scales);
}

void check(const Combine& c, LaunchLimit limit) {
  constexpr const char* kCall = "combine";
  check_limit(kCall, limit);
  check_tokens(kCall, c.num_tokens, c.top_k);
  at_least(kCall, "hidden", c.hidden, 0);
  for (const DType dtype : {c.rows.dtype, c.out.dtype})
    if (!is_wide(dtype))
      refuse(fmt::format("cuda::{}: rows and output are float32, float16 or bfloat16, not {}", kCall,
                         dtype_name(dtype)));
  if (c.num_tokens > 0) present(kCall, "positions", c.positions);
  if (c.num_tokens > 0) present(kCall, "weights", c.weights);
  if (c.weight_stride != 0) at_least(kCall, "weight_stride", c.weight_stride, c.top_k);
  // Where every position is -1 there may be no rows.
  check_rows(kCall, "rows", c.rows, c.hidden, false);
  check_rows(kCall, "out", c.out, c.hidden, c.num_tokens > 0);
}

void raise_launch_error(const char* kernel, bool no_device, const char* text) {
  throw Error(no_device ? Errc::unavailable : Errc::internal,
              fmt::format("CUDA did not run {}: {}", kernel, text));
}

}  // namespace detail
}  // namespace shunt::cuda
