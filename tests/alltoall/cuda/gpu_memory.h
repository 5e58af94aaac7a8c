#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <iterator>
#include <stdexcept>
#include <string>

#include <shunt/alltoall/cuda.h>
#include <shunt/pack/cuda.h>

#include "replay.h"

/// What the tests on a GPU need of CUDA.
namespace gpu {

inline void require(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
}

/// Why these tests cannot run; empty where they can. Every rank needs a hardware queue of its own, or its kernels could be
/// queued behind those of a rank that waits for it: that must be said before CUDA starts.
inline std::string missing() {
  setenv("CUDA_DEVICE_MAX_CONNECTIONS", "32", 1);
  setenv("CUDA_MODULE_LOADING", "EAGER", 1);  // a kernel loaded late could wait for those that wait for it
  setenv("SHUNT_DEVICE", "0", 0);             // one thread launches for all ranks
  return shunt::cuda::unavailable_reason();
}

class OwnStream {
 public:
  OwnStream() { require(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking)); }
  ~OwnStream() { cudaStreamDestroy(stream_); }
  OwnStream(const OwnStream&) = delete;
  OwnStream& operator=(const OwnStream&) = delete;
  [[nodiscard]] cudaStream_t get() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

/// A replayed step whose memory the device sees: page-locked, at addresses that stay.
class SharedStep {
 public:
  SharedStep() {
    void* memory = nullptr;
    require(cudaHostAlloc(&memory, sizeof(Seen), cudaHostAllocMapped | cudaHostAllocPortable));
    seen_ = static_cast<Seen*>(memory);
  }
  ~SharedStep() { cudaFreeHost(seen_); }
  SharedStep(const SharedStep&) = delete;
  SharedStep& operator=(const SharedStep&) = delete;

  /// What `step` holds is what kernels see from here on.
  void show() {
    std::copy(step.tokens.begin(), step.tokens.end(), seen_->tokens);
    std::copy(step.ids.begin(), step.ids.end(), seen_->ids);
    std::copy(step.weights.begin(), step.weights.end(), seen_->weights);
    std::copy(step.out.begin(), step.out.end(), seen_->out);
    seen_->live = step.live;
  }
  /// What kernels have written is in `step` from here on.
  void fetch() { std::copy(std::begin(seen_->out), std::end(seen_->out), step.out.begin()); }

  [[nodiscard]] shunt::cuda::TokenInput tokens() const {
    return {rows(seen_->tokens), ReplayStep::kTokens, nullptr, &seen_->live};
  }
  [[nodiscard]] shunt::cuda::ExpertIds ids() const { return {seen_->ids, false, 0}; }
  [[nodiscard]] shunt::cuda::Weights weights() const { return {seen_->weights, 0}; }
  [[nodiscard]] shunt::cuda::DeviceRows out() const { return rows(seen_->out); }

  ReplayStep step;

 private:
  static shunt::cuda::DeviceRows rows(float* data) {
    return {data, shunt::DType::f32, ReplayStep::kHidden * 4};
  }
  struct Seen {
    float tokens[ReplayStep::kTokens * ReplayStep::kHidden];
    float out[ReplayStep::kTokens * ReplayStep::kHidden];
    float weights[ReplayStep::kTokens * ReplayStep::kTopK];
    std::int32_t ids[ReplayStep::kTokens * ReplayStep::kTopK];
    std::int32_t live;
  };
  Seen* seen_ = nullptr;
};

}  // namespace gpu
