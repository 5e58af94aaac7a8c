#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include <shunt/alltoall/cuda.h>
#include <shunt/transport/transport.h>

#include "frame.h"

namespace shunt::cuda::detail {

/// Runs the kernels of one object: on CUDA streams over some net, or in the tests on the emulator. The object decides what
/// is called when; the engine only launches. StepEngine (step_engine.h) makes one from a net and a device.
/// Threads: as the object.
class Engine {
 public:
  virtual ~Engine() = default;
  Engine() = default;
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  /// Whether kernels store to peers; else places has room for staging and rows are put.
  [[nodiscard]] virtual bool load_store() const = 0;
  /// What kernels write for the host: zeroed, in memory of the host that kernels reach, as long as the engine lives.
  [[nodiscard]] virtual Status* status() = 0;
  /// The same memory, as kernels reach it.
  [[nodiscard]] virtual Status* status_on_device() = 0;
  /// Memory of the object is there (again, after a loss): makes the net of it. `peers` [R] are the parts of the peers as
  /// this rank reaches them, null where it cannot or the rank is masked.
  virtual void connect(const SymmetricBuffer& memory, std::span<std::byte* const> peers,
                       const Frame& frame) = 0;
  /// Waits until no kernel of this process runs on the device. Errors: timeout at the deadline.
  virtual void wait_idle(std::chrono::milliseconds deadline) = 0;
  /// Copies to device memory; done on return.
  virtual void upload(void* to, const void* from, std::int64_t bytes) = 0;

  virtual void dispatch_send(const Frame& frame, const SendCall& call, Stream stream) = 0;
  virtual void dispatch_recv(const Frame& frame, const ReceiveCall& call, Stream stream) = 0;
  virtual void combine_send(const Frame& frame, const ReturnCall& call, Stream stream) = 0;
  virtual void combine_recv(const Frame& frame, const SumCall& call, Stream stream) = 0;
};

/// The engine for this transport, on the current device of the calling thread.
/// Errors: unavailable with the reason: no CUDA in this build, no device, no device memory behind the transport, or peers
///         that can neither be stored to nor be reached by a net of this build.
[[nodiscard]] std::unique_ptr<Engine> make_engine(Transport& transport);
/// Its part for peers that are stored to.
[[nodiscard]] std::unique_ptr<Engine> make_load_store_engine();

}  // namespace shunt::cuda::detail
