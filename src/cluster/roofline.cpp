#include <shunt/cluster/roofline.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include <fmt/format.h>

#include <shunt/core/error.h>
#include <shunt/core/nearest.h>

namespace shunt {
namespace {

constexpr double kBytesPerUsOfGbPerS = 1e3;
constexpr double kFlopsPerUsOfTflops = 1e6;
/// Products with fewer tiles than multiprocessors are cut along k, into parts of at least this length.
constexpr double kSplitLength = 1024;
constexpr double kSmallestTile = 16;

const std::vector<std::string>& type_names() {
  static const std::vector<std::string> names = {"bf16", "fp8", "fp4"};
  return names;
}

double peak_tflops(const Machine& machine, MathType type) {
  const GpuSpec& gpu = machine.node.gpu;
  const double rate =
      type == MathType::bf16 ? gpu.bf16_tflops : (type == MathType::fp8 ? gpu.fp8_tflops : gpu.fp4_tflops);
  if (rate > 0) return rate;
  throw Error(Errc::invalid_argument, fmt::format("{} has no {} rate: it does not multiply in that type",
                                                  gpu.name, math_type_name(type)));
}

double operand_bytes(MathType type) {
  return type == MathType::bf16 ? 2 : (type == MathType::fp8 ? 1 : 0.5);
}

KernelTime bound(const Machine& machine, double flops, double rate, double bytes) {
  KernelTime time;
  time.flops = flops;
  time.bytes = bytes;
  const double compute = flops / rate;
  const double memory = bytes / (machine.hbm.gb_per_s * kBytesPerUsOfGbPerS);
  time.memory_bound = memory > compute;
  time.us = machine.launch_us + std::max(compute, memory);
  return time;
}

}  // namespace

const char* math_type_name(MathType type) noexcept {
  return type_names()[static_cast<std::size_t>(type)].c_str();
}

MathType parse_math_type(const std::string& name) {
  for (std::size_t i = 0; i < type_names().size(); ++i)
    if (type_names()[i] == name) return static_cast<MathType>(i);
  throw Error(Errc::invalid_argument,
              fmt::format("type of matrix products \"{}\": {}", name, allowed_names(name, type_names())));
}

KernelTime gemm_time(const Machine& machine, double m, double n, double k, double count, MathType type,
                     double weight_bytes_per_element, double share, double tile) {
  if (!(m > 0 && n > 0 && k > 0 && count > 0)) return {};
  const double tile_m = std::clamp(std::exp2(std::ceil(std::log2(m))), kSmallestTile, tile);
  const double tile_n = std::clamp(std::exp2(std::ceil(std::log2(n))), kSmallestTile, tile);
  const double padded = std::ceil(m / tile_m) * tile_m * std::ceil(n / tile_n) * tile_n;
  const double sms = machine.node.gpu.sms > 0 ? machine.node.gpu.sms : 132;
  const double tiles = count * padded / (tile_m * tile_n);
  double waves = tiles / sms;
  if (waves < 1) waves = std::min(1.0, waves * std::max(1.0, std::floor(k / kSplitLength)));
  const double fill = m * n / padded * waves / std::ceil(waves);
  const double flops = 2 * m * n * k * count;
  const double bytes = count * (m * k * operand_bytes(type) + n * k * weight_bytes_per_element + m * n * 2);
  return bound(machine, flops, peak_tflops(machine, type) * kFlopsPerUsOfTflops * share * fill, bytes);
}

KernelTime attention_time(const Machine& machine, const AttentionShape& s, double share) {
  const double flops = 2 * s.sequences * s.heads * s.queries * s.keys * (s.qk_dim + s.value_dim);
  if (!(flops > 0)) return {};
  const double rows = 2 * s.sequences * s.queries * s.heads * (s.qk_dim + s.value_dim);
  return bound(machine, flops, peak_tflops(machine, MathType::bf16) * kFlopsPerUsOfTflops * share,
               rows + s.sequences * s.keys * s.kv_bytes);
}

KernelTime elementwise_time(const Machine& machine, double bytes, double share) {
  if (!(bytes > 0)) return {};
  KernelTime time;
  time.bytes = bytes;
  time.memory_bound = true;
  time.us = machine.launch_us + bytes / (machine.hbm.gb_per_s * kBytesPerUsOfGbPerS * share);
  return time;
}

}  // namespace shunt
