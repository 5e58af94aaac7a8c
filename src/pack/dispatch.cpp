#include <cstdlib>
#include <string>

#include <fmt/format.h>

#include <shunt/core/error.h>
#include <shunt/pack/kernels.h>

#include "tables.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#endif

namespace shunt {
namespace {

constexpr Isa kAllIsas[] = {Isa::scalar, Isa::avx2, Isa::avx512, Isa::neon};

std::vector<Isa> detect_isas() {
  std::vector<Isa> isas = {Isa::scalar};
#if defined(__x86_64__)
  __builtin_cpu_init();
  unsigned a = 0, b = 0, c = 0, d = 0;
  const bool f16c = __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
  const bool avx2 = f16c && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (avx2) isas.push_back(Isa::avx2);
  if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
    isas.push_back(Isa::avx512);
#elif defined(__aarch64__)
  isas.push_back(Isa::neon);
#endif
  return isas;
}

bool is_available(Isa isa) {
  for (const Isa candidate : available_isas())
    if (candidate == isa) return true;
  return false;
}

std::string available_names() {
  std::string names;
  for (const Isa isa : available_isas()) names += (names.empty() ? "" : ", ") + std::string(isa_name(isa));
  return names;
}

const PackKernels& choose() {
  const char* forced = std::getenv("SHUNT_FORCE_ISA");
  if (forced == nullptr || *forced == '\0') return pack_kernels(available_isas().back());
  for (const Isa isa : kAllIsas)
    if (std::string_view(forced) == isa_name(isa)) return pack_kernels(isa);
  throw Error(Errc::invalid_argument,
              fmt::format("SHUNT_FORCE_ISA is \"{}\"; allowed here: {}", forced, available_names()));
}

}  // namespace

const char* isa_name(Isa isa) noexcept {
  switch (isa) {
    case Isa::scalar:
      return "scalar";
    case Isa::avx2:
      return "avx2";
    case Isa::avx512:
      return "avx512";
    case Isa::neon:
      return "neon";
  }
  return "unknown";
}

void store_fence() noexcept {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

std::span<const Isa> available_isas() {
  static const std::vector<Isa> isas = detect_isas();
  return isas;
}

const PackKernels& pack_kernels(Isa isa) {
  if (!is_available(isa))
    throw Error(Errc::unavailable, fmt::format("this CPU or build has no {} kernels; it can run: {}",
                                               isa_name(isa), available_names()));
#if defined(__x86_64__)
  if (isa == Isa::avx2) return detail::kAvx2Kernels;
  if (isa == Isa::avx512) return detail::kAvx512Kernels;
#elif defined(__aarch64__)
  if (isa == Isa::neon) return detail::kNeonKernels;
#endif
  return detail::kScalarKernels;
}

const PackKernels& pack_kernels() {
  static const PackKernels& chosen = choose();
  return chosen;
}

}  // namespace shunt
