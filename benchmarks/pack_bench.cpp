// Kernels of every instruction set on rows of the two model shapes, in this core's own caches:
//   pack_bench --benchmark_filter=weighted_sum
// What rows in another core's cache cost is measured by `shunt bench alltoall`, which knows where its ranks
// run.
#include <benchmark/benchmark.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include <shunt/core/random.h>
#include <shunt/pack/kernels.h>

namespace shunt {
namespace {

constexpr std::int64_t kTopK = 8;

std::vector<std::byte> random_elements(DType dtype, std::int64_t count) {
  std::vector<std::byte> bytes(static_cast<std::size_t>(count * dtype_bytes(dtype)));
  Random random(17);
  for (std::int64_t i = 0; i < count; ++i)
    store_element(dtype, bytes.data(), i, static_cast<float>(random.normal()));
  return bytes;
}

void set_bytes(benchmark::State& state, std::int64_t bytes) {
  state.SetBytesProcessed(static_cast<std::int64_t>(state.iterations()) * bytes);
}

/// Bytes: K bf16 rows read and one written.
void weighted_sum(benchmark::State& state, const PackKernels& kernels) {
  const std::int64_t hidden = state.range(0);
  const auto rows = random_elements(DType::bf16, kTopK * hidden);
  std::vector<std::byte> out(static_cast<std::size_t>(2 * hidden));
  const std::vector<float> weights(kTopK, 0.125F);
  std::vector<const void*> pointers;
  for (std::int64_t k = 0; k < kTopK; ++k) pointers.push_back(rows.data() + 2 * k * hidden);
  const WeightedSum sum{.rows = pointers.data(),
                        .weights = weights.data(),
                        .num_rows = kTopK,
                        .hidden = hidden,
                        .out = out.data()};
  for (auto step : state) {
    kernels.weighted_sum(sum);
    benchmark::ClobberMemory();
  }
  set_bytes(state, 2 * hidden * (kTopK + 1));
}

using CopyFunction = void (*)(void*, const void*, std::int64_t);

/// Bytes: one bf16 row, counted once.
void copy_row(benchmark::State& state, CopyFunction copy) {
  const std::int64_t bytes = 2 * state.range(0);
  const auto from = random_elements(DType::bf16, state.range(0));
  std::vector<std::byte> to(from.size());
  for (auto step : state) {
    copy(to.data(), from.data(), bytes);
    store_fence();
    benchmark::ClobberMemory();
  }
  set_bytes(state, bytes);
}

/// Bytes: the row as read.
void scaled_copy(benchmark::State& state, const PackKernels& kernels, DType from_dtype) {
  const std::int64_t hidden = state.range(0);
  const auto from = random_elements(from_dtype, hidden);
  const std::vector<float> scales(static_cast<std::size_t>(hidden), 0.5F);
  std::vector<std::byte> to(static_cast<std::size_t>(2 * hidden));
  ScaledCopy copy{
      .from = from.data(), .to = to.data(), .hidden = hidden, .from_dtype = from_dtype, .factor = 0.5F};
  if (is_fp8(from_dtype)) {
    copy.from_scales = scales.data();
    copy.from_scale = ScaleType::f32;
  }
  for (auto step : state) {
    kernels.scaled_copy(copy);
    benchmark::ClobberMemory();
  }
  set_bytes(state, hidden * dtype_bytes(from_dtype));
}

/// Bytes: the row as read.
void quantise(benchmark::State& state, const PackKernels& kernels) {
  const std::int64_t hidden = state.range(0);
  const auto from = random_elements(DType::bf16, hidden);
  std::vector<std::byte> to(static_cast<std::size_t>(hidden));
  std::vector<float> scales(static_cast<std::size_t>(hidden));
  for (auto step : state) {
    kernels.quantise(from.data(), DType::bf16, hidden, {}, {to.data(), scales.data()});
    benchmark::ClobberMemory();
  }
  set_bytes(state, 2 * hidden);
}

template <class Function, class... Arguments>
void add(const char* kernel, Isa isa, Function function, Arguments... arguments) {
  const std::string name = std::string(kernel) + "/" + isa_name(isa);
  benchmark::RegisterBenchmark(name.c_str(), [=](benchmark::State& state) { function(state, arguments...); })
      ->ArgName("H")
      ->Arg(2048)
      ->Arg(7168);
}

const bool kRegistered = [] {
  for (const Isa isa : available_isas()) {
    const PackKernels kernels = pack_kernels(isa);
    add("weighted_sum", isa, weighted_sum, kernels);
    add("copy", isa, copy_row, kernels.copy);
    add("copy_streaming", isa, copy_row, kernels.copy_streaming);
    add("scaled_copy_bf16", isa, scaled_copy, kernels, DType::bf16);
    add("scaled_copy_f8e4m3", isa, scaled_copy, kernels, DType::f8e4m3);
    add("quantise", isa, quantise, kernels);
  }
  return true;
}();

}  // namespace
}  // namespace shunt
