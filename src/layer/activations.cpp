#include "activations.h"

#include <bit>
#include <cstring>

#include "multiversion.h"

namespace shunt::detail {
namespace {

#define SHUNT_INLINE [[gnu::always_inline]] inline

struct Bf16 {
  std::uint16_t bits;
};

SHUNT_INLINE float load(float value) {
  return value;
}
SHUNT_INLINE float load(Bf16 value) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(value.bits) << 16);
}
SHUNT_INLINE void store(float& to, float value) {
  to = value;
}
SHUNT_INLINE void store(Bf16& to, float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t rounded = (bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16;
  to.bits = static_cast<std::uint16_t>(value == value ? rounded : ((bits >> 16) & 0x8000U) | 0x7fc0U);
}

/// e^x between the smallest normal number and 2^127.
SHUNT_INLINE float exponential(float x) {
  constexpr float kToInteger = 12582912.0F;  // 1.5 * 2^23: what is added to it is rounded to a whole number
  x = x < -87.0F ? -87.0F : x;
  x = x > 88.0F ? 88.0F : x;
  const float shifted = x * 1.44269504F + kToInteger;
  const float whole = shifted - kToInteger;
  const float rest = (x - whole * 0.693359375F) + whole * 2.12194440e-4F;  // ln 2 in two parts
  float sum = 1.0F / 5040.0F;
  sum = sum * rest + 1.0F / 720.0F;
  sum = sum * rest + 1.0F / 120.0F;
  sum = sum * rest + 1.0F / 24.0F;
  sum = sum * rest + 1.0F / 6.0F;
  sum = sum * rest + 0.5F;
  sum = sum * rest + 1.0F;
  sum = sum * rest + 1.0F;
  const std::int32_t exponent =
      std::bit_cast<std::int32_t>(shifted) - std::bit_cast<std::int32_t>(kToInteger);
  return sum * std::bit_cast<float>((exponent + 127) << 23);
}

SHUNT_INLINE float sigmoid(float x) {
  return 1.0F / (1.0F + exponential(-x));
}

/// Share of the normal distribution below x, and its density there.
struct Normal {
  float below, density;
};
SHUNT_INLINE Normal normal(float x) {
  const float size = std::bit_cast<float>(std::bit_cast<std::uint32_t>(x) & 0x7fffffffU);
  const float peak = exponential(-0.5F * x * x);
  const float t = 1.0F / (1.0F + 0.3275911F * 0.70710678F * size);
  float sum = 1.061405429F;
  sum = sum * t - 1.453152027F;
  sum = sum * t + 1.421413741F;
  sum = sum * t - 0.284496736F;
  sum = sum * t + 0.254829592F;
  const float tail = 0.5F * sum * t * peak;
  // Both are computed whatever the sign: a difference inside the choice would keep the loop from vectors.
  const float rest = 1.0F - tail;
  return {x < 0.0F ? tail : rest, peak * 0.39894228F};
}

template <class T>
SHUNT_INLINE void forward(Activation kind, const T* before, std::int64_t ffn, T* after) {
  switch (kind) {
    case Activation::gelu:
      for (std::int64_t i = 0; i < ffn; ++i) {
        const float x = load(before[i]);
        store(after[i], x * normal(x).below);
      }
      break;
    case Activation::silu:
      for (std::int64_t i = 0; i < ffn; ++i) {
        const float x = load(before[i]);
        store(after[i], x * sigmoid(x));
      }
      break;
    case Activation::swiglu:
      for (std::int64_t i = 0; i < ffn; ++i) {
        const float x = load(before[i]);
        store(after[i], x * sigmoid(x) * load(before[ffn + i]));
      }
      break;
  }
}

constexpr std::int64_t kLanes = 16;

/// In lanes, then lane by lane.
SHUNT_INLINE float ordered_sum(const float* values, std::int64_t n) {
  float lanes[kLanes] = {};
  const std::int64_t even = n / kLanes * kLanes;
  for (std::int64_t i = 0; i < even; i += kLanes)
    for (std::int64_t lane = 0; lane < kLanes; ++lane) lanes[lane] += values[i + lane];
  float sum = 0;
  for (const float lane : lanes) sum += lane;
  for (std::int64_t i = even; i < n; ++i) sum += values[i];
  return sum;
}

template <class T>
SHUNT_INLINE float backward(Activation kind, T* before, float* grad, std::int64_t ffn, float weight,
                            T* weighted) {
  switch (kind) {
    case Activation::gelu:
      for (std::int64_t i = 0; i < ffn; ++i) {
        const float x = load(before[i]);
        const Normal at = normal(x);
        const float after = x * at.below;
        store(before[i], weight * grad[i] * (at.below + x * at.density));
        store(weighted[i], weight * after);
        grad[i] *= after;
      }
      break;
    case Activation::silu:
      for (std::int64_t i = 0; i < ffn; ++i) {
        const float x = load(before[i]);
        const float s = sigmoid(x);
        store(before[i], weight * grad[i] * (s * (1.0F + x * (1.0F - s))));
        store(weighted[i], weight * (x * s));
        grad[i] *= x * s;
      }
      break;
    case Activation::swiglu:
      for (std::int64_t i = 0; i < ffn; ++i) {
        const float x = load(before[i]);
        const float gated = load(before[ffn + i]);
        const float s = sigmoid(x);
        const float after = x * s * gated;
        store(before[i], weight * grad[i] * gated * (s * (1.0F + x * (1.0F - s))));
        store(before[ffn + i], weight * grad[i] * (x * s));
        store(weighted[i], weight * after);
        grad[i] *= after;
      }
      break;
  }
  return ordered_sum(grad, ffn);
}

template <class T>
SHUNT_INLINE void add(const T* from, std::int64_t n, float weight, float* to) {
  for (std::int64_t i = 0; i < n; ++i) to[i] += weight * load(from[i]);
}

template <class T>
SHUNT_INLINE float dot(const T* from, std::int64_t n, const float* by) {
  float lanes[kLanes] = {};
  const std::int64_t even = n / kLanes * kLanes;
  for (std::int64_t i = 0; i < even; i += kLanes)
    for (std::int64_t lane = 0; lane < kLanes; ++lane) lanes[lane] += load(from[i + lane]) * by[i + lane];
  float sum = 0;
  for (const float lane : lanes) sum += lane;
  for (std::int64_t i = even; i < n; ++i) sum += load(from[i]) * by[i];
  return sum;
}

// Clones are made of plain functions only.
SHUNT_MULTIVERSION void forward_f32(Activation kind, const float* before, std::int64_t ffn, float* after) {
  forward(kind, before, ffn, after);
}
SHUNT_MULTIVERSION void forward_bf16(Activation kind, const Bf16* before, std::int64_t ffn, Bf16* after) {
  forward(kind, before, ffn, after);
}
SHUNT_MULTIVERSION float backward_f32(Activation kind, float* before, float* grad, std::int64_t ffn,
                                      float weight, float* weighted) {
  return backward(kind, before, grad, ffn, weight, weighted);
}
SHUNT_MULTIVERSION float backward_bf16(Activation kind, Bf16* before, float* grad, std::int64_t ffn,
                                       float weight, Bf16* weighted) {
  return backward(kind, before, grad, ffn, weight, weighted);
}
SHUNT_MULTIVERSION void add_f32(const float* from, std::int64_t n, float weight, float* to) {
  add(from, n, weight, to);
}
SHUNT_MULTIVERSION void add_bf16(const Bf16* from, std::int64_t n, float weight, float* to) {
  add(from, n, weight, to);
}
SHUNT_MULTIVERSION float dot_f32(const float* from, std::int64_t n, const float* by) {
  return dot(from, n, by);
}
SHUNT_MULTIVERSION float dot_bf16(const Bf16* from, std::int64_t n, const float* by) {
  return dot(from, n, by);
}
SHUNT_MULTIVERSION void widen(const Bf16* from, std::int64_t n, float* to) {
  for (std::int64_t i = 0; i < n; ++i) to[i] = load(from[i]);
}
SHUNT_MULTIVERSION void narrow(const float* from, std::int64_t n, Bf16* to) {
  for (std::int64_t i = 0; i < n; ++i) store(to[i], from[i]);
}

}  // namespace

void activate(Activation kind, DType dtype, const void* before, std::int64_t ffn, void* after) {
  if (dtype == DType::f32)
    forward_f32(kind, static_cast<const float*>(before), ffn, static_cast<float*>(after));
  else
    forward_bf16(kind, static_cast<const Bf16*>(before), ffn, static_cast<Bf16*>(after));
}

float activate_backward(Activation kind, DType dtype, void* before, float* grad, std::int64_t ffn,
                        float weight, void* weighted) {
  if (dtype == DType::f32)
    return backward_f32(kind, static_cast<float*>(before), grad, ffn, weight, static_cast<float*>(weighted));
  return backward_bf16(kind, static_cast<Bf16*>(before), grad, ffn, weight, static_cast<Bf16*>(weighted));
}

void add_row(DType dtype, const void* from, std::int64_t n, float weight, float* to) {
  if (dtype == DType::f32)
    add_f32(static_cast<const float*>(from), n, weight, to);
  else
    add_bf16(static_cast<const Bf16*>(from), n, weight, to);
}

float dot_row(DType dtype, const void* from, std::int64_t n, const float* by) {
  return dtype == DType::f32 ? dot_f32(static_cast<const float*>(from), n, by)
                             : dot_bf16(static_cast<const Bf16*>(from), n, by);
}

void to_f32(DType dtype, const void* from, std::int64_t n, float* to) {
  if (dtype == DType::f32)
    std::memcpy(to, from, static_cast<std::size_t>(n) * sizeof(float));
  else
    widen(static_cast<const Bf16*>(from), n, to);
}

void from_f32(DType dtype, const float* from, std::int64_t n, void* to) {
  if (dtype == DType::f32)
    std::memcpy(to, from, static_cast<std::size_t>(n) * sizeof(float));
  else
    narrow(from, n, static_cast<Bf16*>(to));
}

}  // namespace shunt::detail
