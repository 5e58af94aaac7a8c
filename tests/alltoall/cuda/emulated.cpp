#include "emulated.h"

#include <span>
#include <stdexcept>

#include "alltoall/cuda/step_engine.h"
#include "emulator/launcher.h"

namespace gpu {
namespace {

/// A net that only puts; see PutNet.
struct DelayedNet {
  static constexpr bool kLoadStore = false;
  Postman* postman = nullptr;
  std::int32_t rank = 0;

  template <class Context>
  void put(Context& ctx, std::int32_t to, std::int64_t to_offset, std::int64_t from_offset,
           std::int64_t bytes, std::int32_t signal) const {
    const std::int64_t sum = to + 3 * to_offset + 5 * from_offset + 7 * bytes + 11 * signal;
    if (ctx.shuffle(sum, 0) != sum) throw std::logic_error("the lanes of a warp put different things");
    if (bytes < 1) throw std::logic_error("a put of no bytes");
    if (ctx.lane() == 0) postman->post({rank, to, to_offset, from_offset, bytes, signal});
    ctx.sync_warp();
  }
  template <class Context>
  [[nodiscard]] std::uint64_t load(Context& ctx, std::int32_t signal) const {
    postman->work();
    return ctx.load_acquire(shunt::device::Scope::system, postman->word(rank, signal));
  }
};
static_assert(shunt::cuda::detail::PutNet<DelayedNet, shunt::emulator::Context>);

/// The stream of a rank.
class StreamLauncher {
 public:
  StreamLauncher(shunt::emulator::Machine& machine, std::int32_t rank, Recording* recording)
      : machine_(&machine), rank_(rank), recording_(recording) {}
  template <class Kernel>
  void launch(const shunt::device::LaunchShape& shape, const typename Kernel::Args& args) {
    const auto go = [machine = machine_, rank = rank_, shape, args] {
      shunt::emulator::Launcher(*machine, rank).launch<Kernel>(shape, args);
    };
    if (recording_ != nullptr && recording_->capturing)
      recording_->launches.emplace_back(go);
    else
      go();
  }
  [[nodiscard]] std::int32_t processors() const { return machine_->processors(); }
  template <class Kernel>
  [[nodiscard]] static std::int32_t blocks_per_processor(std::int32_t /*shared_bytes*/) {
    return 8;
  }

 private:
  shunt::emulator::Machine* machine_;
  std::int32_t rank_;
  Recording* recording_;
};

/// A rank's GPU on the emulator. Launches are queued; the machine runs them.
class EmulatedDevice {
 public:
  EmulatedDevice(shunt::emulator::Machine& machine, std::int32_t rank, Recording* recording)
      : machine_(&machine), rank_(rank), recording_(recording) {}
  [[nodiscard]] shunt::cuda::detail::Status* status() { return &status_; }
  [[nodiscard]] shunt::cuda::detail::Status* status_on_device() { return &status_; }
  static void wait_idle(std::chrono::milliseconds /*deadline*/) {}
  static void upload(void* to, const void* from, std::int64_t bytes) {
    std::memcpy(to, from, static_cast<std::size_t>(bytes));
  }
  [[nodiscard]] StreamLauncher launcher(shunt::cuda::Stream /*stream*/) const {
    return {*machine_, rank_, recording_};
  }
  static shunt::cuda::detail::LoadStoreNet connect(const shunt::SymmetricBuffer& /*memory*/,
                                                   std::span<std::byte* const> /*peers*/,
                                                   const shunt::cuda::detail::Frame& frame) {
    return {frame.own<std::byte*>(frame.at.bases_at), frame.at.signals_at, frame.rank};
  }

 protected:
  shunt::emulator::Machine* machine_;
  std::int32_t rank_;
  Recording* recording_;
  shunt::cuda::detail::Status status_;
};

/// The same behind a postman.
class DistantDevice : public EmulatedDevice {
 public:
  DistantDevice(shunt::emulator::Machine& machine, std::int32_t rank, Recording* recording, Postman& postman)
      : EmulatedDevice(machine, rank, recording), postman_(&postman) {}
  DelayedNet connect(const shunt::SymmetricBuffer& memory, std::span<std::byte* const> /*peers*/,
                     const shunt::cuda::detail::Frame& frame) {
    postman_->join(rank_, memory.local, frame.at.signals_at);
    return {postman_, rank_};
  }

 private:
  Postman* postman_;
};

}  // namespace

std::unique_ptr<shunt::cuda::detail::Engine> make_engine(shunt::emulator::Machine& machine, std::int32_t rank,
                                                         Postman* postman, Recording* recording) {
  using shunt::cuda::detail::LoadStoreNet;
  using shunt::cuda::detail::StepEngine;
  if (postman == nullptr)
    return std::make_unique<StepEngine<LoadStoreNet, EmulatedDevice>>(
        std::make_unique<EmulatedDevice>(machine, rank, recording));
  return std::make_unique<StepEngine<DelayedNet, DistantDevice>>(
      std::make_unique<DistantDevice>(machine, rank, recording, *postman));
}

}  // namespace gpu
