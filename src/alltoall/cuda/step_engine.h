#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <utility>

#include "engine.h"
#include "steps.h"

namespace shunt::cuda::detail {

/// The engine of a net on a device. Device has launcher(stream), a launcher for steps.h; status() and status_on_device();
/// upload(to, from, bytes); wait_idle(deadline); connect(memory, peers, frame), which returns the net; and, where kernels have to be
/// loaded before the first one waits, loader(), a launcher that does so. On GPUs it is compiled by nvcc.
template <class Net, class Device>
class StepEngine final : public Engine {
 public:
  explicit StepEngine(std::unique_ptr<Device> device) : device_(std::move(device)) {}

  [[nodiscard]] bool load_store() const override { return Net::kLoadStore; }
  [[nodiscard]] Status* status() override { return device_->status(); }
  [[nodiscard]] Status* status_on_device() override { return device_->status_on_device(); }
  void connect(const SymmetricBuffer& memory, std::span<std::byte* const> peers,
               const Frame& frame) override {
    net_ = device_->connect(memory, peers, frame);
    if constexpr (requires { device_->loader(); }) load_kernels(frame);
  }
  void wait_idle(std::chrono::milliseconds deadline) override { device_->wait_idle(deadline); }
  void upload(void* to, const void* from, std::int64_t bytes) override { device_->upload(to, from, bytes); }

  void dispatch_send(const Frame& frame, const SendCall& call, Stream stream) override {
    auto launcher = device_->launcher(stream);
    detail::dispatch_send(launcher, net_, frame, call);
  }
  void dispatch_recv(const Frame& frame, const ReceiveCall& call, Stream stream) override {
    auto launcher = device_->launcher(stream);
    detail::dispatch_recv(launcher, net_, frame, call);
  }
  void combine_send(const Frame& frame, const ReturnCall& call, Stream stream) override {
    auto launcher = device_->launcher(stream);
    detail::combine_send(launcher, net_, frame, call);
  }
  void combine_recv(const Frame& frame, const SumCall& call, Stream stream) override {
    auto launcher = device_->launcher(stream);
    detail::combine_recv(launcher, net_, frame, call);
  }

 private:
  /// Every kernel that calls with this frame may launch: rows of any alignment.
  void load_kernels(const Frame& frame) {
    auto loader = device_->loader();
    for (const std::int64_t unit : {16, 4, 2, 1}) {
      SendCall send;
      send.input.num_tokens = 1;
      send.input.tokens = {nullptr, frame.token_dtype, unit};
      detail::dispatch_send(loader, net_, frame, send);
      detail::combine_send(loader, net_, frame, {{nullptr, frame.expert_dtype, unit}, {}});
    }
    detail::dispatch_recv(loader, net_, frame, {});
    SumCall sum;
    sum.num_tokens = 1;
    sum.out = {nullptr, frame.out_dtype, 0};
    detail::combine_recv(loader, net_, frame, sum);
  }

  std::unique_ptr<Device> device_;
  Net net_{};
};

}  // namespace shunt::cuda::detail
