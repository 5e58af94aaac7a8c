#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include <shunt/alltoall/cuda.h>
#include <shunt/core/error.h>
#include <shunt/transport/transport.h>

#include "gpu_memory.h"
#include "replay.h"

namespace gpu {

/// One rank with several objects on one stream, and steps that are all queued before anybody looks. Their experts return
/// what they get, in every second step by way of expert_output().
class Member {
 public:
  static constexpr std::int32_t kExperts = 9;

  /// Collective.
  Member(shunt::Transport& transport, std::int32_t num_objects, std::int32_t num_steps,
         const shunt::AllToAllConfig& config = ReplayStep::config(kExperts))
      : rank_(transport.world().rank) {
    for (std::int32_t i = 0; i < num_objects; ++i)
      objects_.push_back(
          std::make_unique<shunt::cuda::AllToAll>(transport, config, shunt::cuda::AllToAllOptions{}));
    for (std::int32_t i = 0; i < num_objects * num_steps; ++i) {
      SharedStep& memory = steps_.emplace_back();
      memory.step.fill(static_cast<std::uint64_t>(i), rank_, kExperts);
      memory.show();
    }
  }

  [[nodiscard]] shunt::cuda::AllToAll& object(std::size_t i) { return *objects_[i]; }
  /// Of object `i`; call show() after changes.
  [[nodiscard]] SharedStep& memory(std::size_t step, std::size_t i) {
    return steps_[step * objects_.size() + i];
  }

  /// The four calls of every step, each for one object after the other.
  void queue() { queue(0, steps_.size() / objects_.size()); }
  /// Those of the steps from `first` to before `end`.
  void queue(std::size_t first, std::size_t end) {
    const cudaStream_t stream = stream_.get();
    for (std::size_t step = first; step < end; ++step) {
      std::vector<shunt::cuda::Sent<shunt::Half::dispatch>> sent;
      std::vector<shunt::cuda::Sent<shunt::Half::combine>> returned;
      std::vector<shunt::cuda::DeviceRows> results;
      for (std::size_t i = 0; i < objects_.size(); ++i)
        sent.push_back(ahead([&] {
          return objects_[i]->dispatch_send(memory(step, i).tokens(), memory(step, i).ids(), stream);
        }));
      for (std::size_t i = 0; i < objects_.size(); ++i) {
        const auto received = ahead([&] { return objects_[i]->dispatch_recv(std::move(sent[i]), stream); });
        results.push_back(received.rows);
        if (step % 2 == 0) continue;
        results.back() = objects_[i]->expert_output();
        require(cudaMemcpy2DAsync(results.back().data, static_cast<std::size_t>(results.back().stride_bytes),
                                  received.rows.data, static_cast<std::size_t>(received.rows.stride_bytes),
                                  ReplayStep::kHidden * 4, static_cast<std::size_t>(received.max_rows),
                                  cudaMemcpyDeviceToDevice, stream));
      }
      for (std::size_t i = 0; i < objects_.size(); ++i)
        returned.push_back(ahead([&] { return objects_[i]->combine_send(results[i], stream); }));
      for (std::size_t i = 0; i < objects_.size(); ++i)
        ahead([&] {
          objects_[i]->combine_recv(std::move(returned[i]), memory(step, i).weights(), memory(step, i).out(),
                                    stream);
        });
    }
  }
  void finish() { require(cudaStreamSynchronize(stream_.get())); }
  /// What a step was void for: as a call threw it while later steps were queued, or as check() says now; or nothing.
  [[nodiscard]] std::optional<shunt::Error> finding() {
    for (const auto& object : objects_) {
      if (found_.has_value()) break;
      try {
        object->check();
      } catch (const shunt::Error& error) {
        found_ = error;
      }
    }
    return std::exchange(found_, std::nullopt);
  }
  /// Throws where an output is not what it must be.
  void check_outputs() { check_outputs(0, steps_.size() / objects_.size()); }
  void check_outputs(std::size_t first, std::size_t end) {
    for (std::size_t i = first * objects_.size(); i < end * objects_.size(); ++i) {
      steps_[i].fetch();
      steps_[i].step.check(i, rank_);
    }
  }

 private:
  /// A call tells of an earlier step as soon as the GPU has said that it is void, launches nothing then, and is made again.
  template <class Call>
  auto ahead(const Call& call) -> decltype(call()) {
    try {
      return call();
    } catch (const shunt::Error& error) {
      if (found_.has_value() || error.code() != shunt::Errc::invalid_argument) throw;
      found_ = error;
    }
    return call();
  }

  std::int32_t rank_;
  OwnStream stream_;
  std::vector<std::unique_ptr<shunt::cuda::AllToAll>> objects_;
  std::deque<SharedStep> steps_;
  std::optional<shunt::Error> found_;
};

}  // namespace gpu
