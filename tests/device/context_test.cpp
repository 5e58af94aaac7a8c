// Every operation of the context, on the emulator. context_gpu_test.cpp runs the same on a GPU.
#include <memory>

#include "context_checks.h"
#include "emulator/launcher.h"

namespace shunt::test {
namespace {

class EmulatedDevice {
 public:
  explicit EmulatedDevice(std::uint64_t seed) : seed_(seed) {}
  template <class T>
  T* array(std::int64_t count) {
    auto memory = std::shared_ptr<T[]>(new T[static_cast<std::size_t>(count)]());
    memory_.push_back(memory);
    return memory.get();
  }
  template <class Kernel>
  void run(std::int32_t blocks, const typename Kernel::Args& args) {
    emulator::Machine machine({.seed = seed_});
    emulator::Launcher launcher(machine);
    launcher.launch<Kernel>({blocks, Kernel::kThreads, Kernel::kSharedBytes}, args);
    machine.run();
  }

 private:
  std::uint64_t seed_;
  std::vector<std::shared_ptr<void>> memory_;
};

TEST(ContextTest, OperationsGiveTheSameOnTheEmulatorUnderEverySchedule) {
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    EmulatedDevice device(seed);
    check_warp_operations(device);
    check_counters(device);
    check_exchange(device, -1, 1'000'000'000);
    check_exchange(device, 2, 300'000);
    if (HasFatalFailure()) return;
  }
}

TEST(ContextTest, ConversionsGiveTheBitsOfCore) {
  EmulatedDevice device(1);
  check_conversions(device);
}

}  // namespace
}  // namespace shunt::test
