#include "case.h"

#include <algorithm>
#include <cstring>

#include <fmt/format.h>

namespace shunt::test {
namespace {

std::size_t at(std::int64_t i) {
  return static_cast<std::size_t>(i);
}

std::int64_t between(Random& random, std::int64_t low, std::int64_t high) {
  return low + static_cast<std::int64_t>(random.below(static_cast<std::uint64_t>(high - low + 1)));
}

bool one_in(Random& random, std::uint64_t n) {
  return random.below(n) == 0;
}

template <class T>
T any_of(Random& random, const std::vector<T>& values) {
  return values[random.below(values.size())];
}

std::int64_t round_up(std::int64_t value, std::int64_t step) {
  return (value + step - 1) / step * step;
}

}  // namespace

CudaCase draw_case(Random& random) {
  CudaCase c;
  // Now and then nothing, one token, or many short ones; long rows with few tokens.
  const std::uint64_t shape = random.below(10);
  c.tokens = shape == 0 ? 0 : shape == 1 ? 1 : shape == 2 ? between(random, 40, 130) : between(random, 2, 24);
  c.hidden = shape == 2 ? between(random, 1, 40) : between(random, 1, one_in(random, 6) ? 3000 : 400);
  if (one_in(random, 2)) c.hidden = round_up(c.hidden, 16);
  c.experts = static_cast<std::int32_t>(
      one_in(random, 24) ? between(random, 1025, 2100) : between(random, 1, one_in(random, 4) ? 300 : 40));
  c.top_k = static_cast<std::int32_t>(one_in(random, 8) ? between(random, 9, 40) : between(random, 1, 8));
  c.wide_ids = one_in(random, 2);
  c.some_invalid = one_in(random, 8);
  if (one_in(random, 3)) c.live = between(random, 0, c.tokens + 3);

  const std::int64_t selections = c.tokens * c.top_k;
  c.alignment = any_of<std::int64_t>(random, {1, 1, 4, 16, 24});
  if (one_in(random, 3) && c.experts <= 64) {
    const std::int64_t fair = selections / c.experts + 1;
    c.rows_per_expert = one_in(random, 3) ? between(random, 1, fair) : round_up(2 * fair, 4);
    c.max_rows = c.experts * c.rows_per_expert + between(random, 0, 3);
  } else {
    c.max_rows = selections + std::min<std::int64_t>(selections, c.experts) * (c.alignment - 1);
    if (one_in(random, 5)) c.max_rows = between(random, 0, c.max_rows);
  }
  c.mark_rows = !one_in(random, 5);

  c.token_dtype = kWideDTypes.at(random.below(3));
  c.payload = c.token_dtype;
  const std::uint64_t kind = random.below(8);
  if (kind < 4) {  // quantised on the way
    c.payload = one_in(random, 4) ? DType::f8e5m2 : DType::f8e4m3;
    c.scale = kScaleTypes.at(random.below(3));
  } else if (kind == 4) {  // fp8 already
    c.token_dtype = c.payload = DType::f8e4m3;
    c.scale = kScaleTypes.at(random.below(3));
  }
  c.block = any_of<std::int64_t>(random, {128, 128, 128, 64, 32, 16, 100, 7, 1, 600, 513});
  if (one_in(random, 2)) c.layout = cuda::ScaleLayout::column_major;
  if (c.rows_per_expert > 0 && one_in(random, 2)) c.matrix_rows = c.rows_per_expert;
  c.result_dtype = kWideDTypes.at(random.below(3));
  c.out_dtype = kWideDTypes.at(random.below(3));
  c.accumulate = one_in(random, 4);
  if (one_in(random, 3)) c.extra_stride = between(random, 1, 20);
  c.offset = one_in(random, 2) ? 0 : any_of<std::size_t>(random, {4, 8, 16, 20, 48});
  c.any_bits = one_in(random, 3);
  c.max_blocks = static_cast<std::int32_t>(one_in(random, 3) ? between(random, 1, 4) : 0);
  return c;
}

std::string describe(const CudaCase& c) {
  return fmt::format(
      "T {}{}, K {}, E {}, ids {}{}, alignment {}, rows_per_expert {}, max_rows {}{}, H {}, {} -> {}, scale "
      "{} of {} ({}, "
      "matrix_rows {}), results {} -> {}{}, extra stride {}, offset {}, max_blocks {}",
      c.tokens, c.live < 0 ? "" : fmt::format(" (live {})", c.live), c.top_k, c.experts,
      c.wide_ids ? "int64" : "int32", c.some_invalid ? " some invalid" : "", c.alignment, c.rows_per_expert,
      c.max_rows, c.mark_rows ? "" : ", no selections", c.hidden, dtype_name(c.token_dtype),
      dtype_name(c.payload), static_cast<int>(c.scale), c.block,
      c.layout == cuda::ScaleLayout::row_major ? "rows" : "columns", c.matrix_rows,
      dtype_name(c.result_dtype), dtype_name(c.out_dtype), c.accumulate ? " accumulated" : "", c.extra_stride,
      c.offset, c.max_blocks);
}

CudaRun::CudaRun(const CudaCase& c, Random& random) : case_(c) {
  const std::int64_t selections = c.tokens * c.top_k;
  live_tokens_ = c.live < 0 ? c.tokens : std::min(c.live, c.tokens);
  live_ = static_cast<std::int32_t>(c.live);
  num_rows_ = c.max_rows;
  const bool skewed = one_in(random, 4);
  for (std::int64_t i = 0; i < selections; ++i) {
    auto id = static_cast<std::int64_t>(random.below(static_cast<std::uint64_t>(c.experts)));
    if (skewed && !one_in(random, 4)) id = std::min<std::int64_t>(id, 1);
    if (one_in(random, 10)) id = -1;
    if (c.some_invalid && one_in(random, 20))
      id = one_in(random, 2) ? c.experts : c.wide_ids ? (INT64_C(1) << 33) : -2;
    ids_.push_back(id);
    narrow_ids_.push_back(static_cast<std::int32_t>(id));
  }
  const auto buffer = [&](std::int64_t count, DType dtype) {
    return GuardedBuffer(count * stride(dtype), c.offset);
  };
  tokens_ = buffer(c.tokens, c.token_dtype);
  fill_elements(random, c.token_dtype, tokens_, c.any_bits);
  results_ = buffer(num_rows_, c.result_dtype);
  fill_elements(random, c.result_dtype, results_, c.any_bits);
  weights_ = GuardedBuffer(selections * 4, 4);
  fill_elements(random, DType::f32, weights_, c.any_bits);
  const std::int64_t num_scales = (c.hidden + c.block - 1) / c.block;
  token_scales_ = GuardedBuffer(c.tokens * num_scales * scale_bytes(c.scale), 4);
  for (std::size_t i = 0; i < token_scales_.size(); ++i)
    token_scales_.data()[i] = static_cast<unsigned char>(random.next_u32());
  workspace_ = GuardedBuffer(cuda::plan_workspace_bytes(plan_input()), 0);

  for (Memory* memory : {&actual_, &expected_}) {
    memory->counts.assign(at(c.experts), -7);
    memory->starts.assign(at(c.experts + 1), -7);
    memory->positions.assign(at(selections), -7);
    memory->selections.assign(at(c.mark_rows ? num_rows_ : 0), -7);
    memory->status.assign(1, {-7, -7, -7, -7});
    memory->rows = buffer(num_rows_, c.payload);
    memory->slots = buffer(selections, c.payload);
    memory->out = buffer(c.tokens, c.out_dtype);
    GuardedBuffer none(0);
    memory->scales = GuardedBuffer(cuda::scale_buffer_bytes(scales(none), num_rows_, c.hidden), 0);
    memory->slot_scales =
        GuardedBuffer(cuda::scale_buffer_bytes(dense_scales(none), selections, c.hidden), 0);
  }
  fill_elements(random, c.out_dtype, actual_.out, c.any_bits);
  std::copy_n(actual_.out.data(), actual_.out.size(), expected_.out.data());
  expect_plan();
  expect_rows();
  expect_slots();
  expect_sums();
}

std::int64_t CudaRun::stride(DType dtype) const {
  return (case_.hidden + case_.extra_stride) * dtype_bytes(dtype);
}

cuda::DeviceRows CudaRun::rows(GuardedBuffer& buffer, DType dtype) const {
  return {buffer.data(), dtype, stride(dtype)};
}

cuda::Scales CudaRun::scales(GuardedBuffer& buffer) const {
  if (case_.scale == ScaleType::none) return {.block = case_.block};
  const std::int64_t in_a_column = case_.matrix_rows > 0 ? case_.matrix_rows : num_rows_;
  return {.data = buffer.data(),
          .type = case_.scale,
          .layout = case_.layout,
          .block = case_.block,
          .stride = std::max<std::int64_t>(round_up(in_a_column, 4), 4),
          .matrix_rows = case_.matrix_rows};
}

cuda::Scales CudaRun::dense_scales(GuardedBuffer& buffer) const {
  if (case_.scale == ScaleType::none) return {.block = case_.block};
  return {.data = buffer.data(), .type = case_.scale, .block = case_.block};
}

cuda::PlanInput CudaRun::plan_input() {
  const void* ids = case_.wide_ids ? static_cast<const void*>(ids_.data()) : narrow_ids_.data();
  return {.selections = {.ids = ids,
                         .wide = case_.wide_ids,
                         .num_tokens = case_.tokens,
                         .top_k = case_.top_k,
                         .live_tokens = live()},
          .num_experts = case_.experts,
          .rows_per_expert = case_.rows_per_expert,
          .alignment = case_.alignment,
          .max_rows = case_.max_rows};
}

cuda::Plan CudaRun::plan() {
  return {.counts = actual_.counts.data(),
          .starts = actual_.starts.data(),
          .positions = actual_.positions.data(),
          .selections = case_.mark_rows && num_rows_ > 0 ? actual_.selections.data() : nullptr,
          .status = actual_.status.data()};
}

cuda::Gather CudaRun::gather() {
  cuda::Gather g;
  g.from = rows(tokens_, case_.token_dtype);
  g.positions = actual_.positions.data();
  g.num_tokens = case_.tokens;
  g.top_k = case_.top_k;
  g.live_tokens = live();
  g.hidden = case_.hidden;
  g.to = rows(actual_.rows, case_.payload);
  g.scales = scales(actual_.scales);
  if (case_.token_dtype == case_.payload) g.from_scales = dense_scales(token_scales_);
  return g;
}

cuda::Scatter CudaRun::scatter() {
  cuda::Scatter s;
  s.from = rows(actual_.rows, case_.payload);
  s.destinations = actual_.selections.data();
  s.num_rows = num_rows_;
  s.hidden = case_.hidden;
  s.to = rows(actual_.slots, case_.payload);
  s.from_scales = scales(actual_.scales);
  s.to_scales = dense_scales(actual_.slot_scales);
  return s;
}

cuda::Combine CudaRun::combine() {
  cuda::Combine c;
  c.rows = rows(results_, case_.result_dtype);
  c.positions = actual_.positions.data();
  c.weights = reinterpret_cast<const float*>(weights_.data());
  c.num_tokens = case_.tokens;
  c.top_k = case_.top_k;
  c.live_tokens = live();
  c.hidden = case_.hidden;
  c.out = rows(actual_.out, case_.out_dtype);
  c.accumulate = case_.accumulate;
  return c;
}

// One selection after the other, as they stand.
void CudaRun::expect_plan() {
  const CudaCase& c = case_;
  Memory& m = expected_;
  cuda::PlanStatus status{-1, 0, 0, 0};
  std::vector<std::int64_t> wanted(at(c.experts), 0);
  const auto valid = [&](std::int64_t id) { return id >= 0 && id < c.experts; };
  for (std::int64_t i = 0; i < live_tokens_ * c.top_k; ++i) {
    const std::int64_t id = ids_[at(i)];
    if (valid(id))
      ++wanted[at(id)];
    else if (id != -1 && status.first_invalid < 0)
      status.first_invalid = static_cast<std::int32_t>(i);
  }
  std::int64_t next = 0;
  for (std::int64_t e = 0; e < c.experts; ++e) {
    m.starts[at(e)] = static_cast<std::int32_t>(next);
    next += c.rows_per_expert > 0 ? c.rows_per_expert : round_up(wanted[at(e)], c.alignment);
  }
  m.starts[at(c.experts)] = static_cast<std::int32_t>(next);
  m.counts.assign(at(c.experts), 0);
  std::fill(m.selections.begin(), m.selections.end(), -1);
  std::vector<std::int64_t> seen(at(c.experts), 0);
  for (std::int64_t i = 0; i < live_tokens_ * c.top_k; ++i) {
    const std::int64_t id = ids_[at(i)];
    m.positions[at(i)] = -1;
    if (!valid(id)) continue;
    const std::int64_t row = m.starts[at(id)] + seen[at(id)];
    const bool room = c.rows_per_expert > 0 ? seen[at(id)] < c.rows_per_expert : row < c.max_rows;
    ++seen[at(id)];
    if (!room) {
      ++status.dropped;
      continue;
    }
    ++m.counts[at(id)];
    ++status.num_rows;
    m.positions[at(i)] = static_cast<std::int32_t>(row);
    if (c.mark_rows) m.selections[at(row)] = static_cast<std::int32_t>(i);
  }
  status.rows_needed = static_cast<std::int32_t>(
      c.rows_per_expert > 0 ? *std::max_element(wanted.begin(), wanted.end()) : next);
  m.status[0] = status;
}

namespace {

/// Where scale `b` of `row` belongs, from the words of the header.
std::int64_t scale_place(const cuda::Scales& s, std::int64_t num_scales, std::int64_t row, std::int64_t b) {
  const std::int64_t bytes = scale_bytes(s.type);
  if (s.layout == cuda::ScaleLayout::row_major) return (row * num_scales + b) * bytes;
  const std::int64_t per_column = 4 / bytes;
  const std::int64_t columns = (num_scales + per_column - 1) / per_column;
  const std::int64_t matrix = s.matrix_rows > 0 ? row / s.matrix_rows : 0;
  const std::int64_t in_matrix = s.matrix_rows > 0 ? row % s.matrix_rows : row;
  return ((matrix * columns + b / per_column) * s.stride + in_matrix) * 4 + b % per_column * bytes;
}

void place_scales(const cuda::Scales& s, std::int64_t num_scales, std::int64_t row,
                  const unsigned char* dense) {
  auto* data = static_cast<unsigned char*>(s.data);
  const std::int64_t bytes = scale_bytes(s.type);
  for (std::int64_t b = 0; b < num_scales; ++b)
    std::memcpy(data + scale_place(s, num_scales, row, b), dense + b * bytes, at(bytes));
  if (s.type == ScaleType::ue8m0 && s.layout == cuda::ScaleLayout::column_major)
    for (std::int64_t b = num_scales; b % 4 != 0; ++b) data[scale_place(s, num_scales, row, b)] = 0;
}

}  // namespace

void CudaRun::expect_rows() {
  const CudaCase& c = case_;
  const PackKernels& kernels = pack_kernels(Isa::scalar);
  const Quantisation how{c.payload, c.scale, c.block};
  const std::int64_t num_scales = how.num_scales(c.hidden);
  const cuda::Scales to_scales = scales(expected_.scales);
  std::vector<unsigned char> row_scales(at(num_scales * 4));
  for (std::int64_t t = 0; t < live_tokens_; ++t) {
    const unsigned char* token = tokens_.data() + t * stride(c.token_dtype);
    for (std::int64_t k = 0; k < c.top_k; ++k) {
      const std::int64_t row = expected_.positions[at(t * c.top_k + k)];
      if (row < 0) continue;
      unsigned char* to = expected_.rows.data() + row * stride(c.payload);
      const unsigned char* dense = row_scales.data();
      if (c.token_dtype == c.payload) {
        std::copy_n(token, c.hidden * dtype_bytes(c.payload), to);
        dense = token_scales_.data() + t * num_scales * scale_bytes(c.scale);
      } else {
        kernels.quantise(token, c.token_dtype, c.hidden, how, {to, row_scales.data()});
      }
      if (c.scale != ScaleType::none) place_scales(to_scales, num_scales, row, dense);
    }
  }
}

void CudaRun::expect_slots() {
  const CudaCase& c = case_;
  if (!c.mark_rows) return;
  const std::int64_t num_scales = (c.hidden + c.block - 1) / c.block;
  const cuda::Scales from = scales(expected_.scales);
  const std::int64_t bytes = scale_bytes(c.scale);
  for (std::int64_t row = 0; row < num_rows_; ++row) {
    const std::int64_t slot = expected_.selections[at(row)];
    if (slot < 0) continue;
    std::copy_n(expected_.rows.data() + row * stride(c.payload), c.hidden * dtype_bytes(c.payload),
                expected_.slots.data() + slot * stride(c.payload));
    for (std::int64_t b = 0; b < num_scales && bytes > 0; ++b)
      std::copy_n(expected_.scales.data() + scale_place(from, num_scales, row, b), bytes,
                  expected_.slot_scales.data() + (slot * num_scales + b) * bytes);
  }
}

void CudaRun::expect_sums() {
  const CudaCase& c = case_;
  std::vector<const void*> pointers(at(c.top_k));
  for (std::int64_t t = 0; t < live_tokens_; ++t) {
    for (std::int64_t k = 0; k < c.top_k; ++k) {
      const std::int64_t row = expected_.positions[at(t * c.top_k + k)];
      pointers[at(k)] = row < 0 ? nullptr : results_.data() + row * stride(c.result_dtype);
    }
    pack_kernels(Isa::scalar)
        .weighted_sum({.rows = pointers.data(),
                       .weights = reinterpret_cast<const float*>(weights_.data()) + t * c.top_k,
                       .num_rows = c.top_k,
                       .hidden = c.hidden,
                       .row_dtype = c.result_dtype,
                       .out_dtype = c.out_dtype,
                       .out = expected_.out.data() + t * stride(c.out_dtype),
                       .accumulate = c.accumulate});
  }
}

std::vector<CudaRun::Region> CudaRun::regions() {
  std::vector<Region> all;
  const auto add = [&](void* data, std::size_t bytes) {
    if (bytes > 0) all.push_back({data, bytes});
  };
  const auto numbers = [&](auto& values) { add(values.data(), values.size() * sizeof values[0]); };
  add(&live_, sizeof live_);
  numbers(ids_);
  numbers(narrow_ids_);
  numbers(actual_.counts);
  numbers(actual_.starts);
  numbers(actual_.positions);
  numbers(actual_.selections);
  numbers(actual_.status);
  for (GuardedBuffer* buffer : {&workspace_, &tokens_, &results_, &weights_, &token_scales_, &actual_.rows,
                                &actual_.scales, &actual_.slots, &actual_.slot_scales, &actual_.out})
    add(buffer->data(), buffer->size());
  return all;
}

std::string CudaRun::difference() const {
  const Memory& a = actual_;
  const Memory& e = expected_;
  const auto& s = a.status[0];
  const auto& t = e.status[0];
  if (s.first_invalid != t.first_invalid || s.dropped != t.dropped || s.rows_needed != t.rows_needed ||
      s.num_rows != t.num_rows)
    return fmt::format(
        "status: first_invalid {} ({}), dropped {} ({}), rows_needed {} ({}), num_rows {} ({})",
        s.first_invalid, t.first_invalid, s.dropped, t.dropped, s.rows_needed, t.rows_needed, s.num_rows,
        t.num_rows);
  const auto numbers = [](const char* name, const std::vector<std::int32_t>& x,
                          const std::vector<std::int32_t>& y) -> std::string {
    for (std::size_t i = 0; i < x.size(); ++i)
      if (x[i] != y[i]) return fmt::format("{}[{}] is {}, expected {}", name, i, x[i], y[i]);
    return {};
  };
  const auto bytes = [](const char* name, DType dtype, const GuardedBuffer& x,
                        const GuardedBuffer& y) -> std::string {
    const std::int64_t i = first_difference(dtype, x, y);
    if (i >= 0) return fmt::format("element {} of {} differs", i, name);
    return x.guards_intact() ? "" : fmt::format("a byte outside of {} was written", name);
  };
  const DType scale_type = case_.scale == ScaleType::f32 ? DType::f32 : DType::f8e5m2;
  for (const std::string& text :
       {numbers("counts", a.counts, e.counts), numbers("starts", a.starts, e.starts),
        numbers("positions", a.positions, e.positions), numbers("selections", a.selections, e.selections),
        bytes("rows", case_.payload, a.rows, e.rows), bytes("scales", scale_type, a.scales, e.scales),
        bytes("slots", case_.payload, a.slots, e.slots),
        bytes("slot scales", scale_type, a.slot_scales, e.slot_scales),
        bytes("out", case_.out_dtype, a.out, e.out)})
    if (!text.empty()) return text;
  return workspace_.guards_intact() ? "" : "a byte outside of the workspace was written";
}

}  // namespace shunt::test
