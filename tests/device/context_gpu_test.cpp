// Every operation of the context on a GPU, in memory of the host that the GPU reaches.
#include <cuda_runtime_api.h>

#include <cstring>

#include <shunt/pack/cuda.h>

#include "context_checks.h"
#include "context_gpu.h"

namespace shunt::test {
namespace {

class Gpu {
 public:
  Gpu() = default;
  ~Gpu() {
    for (void* memory : memory_) cudaFreeHost(memory);
  }
  Gpu(const Gpu&) = delete;
  Gpu& operator=(const Gpu&) = delete;

  template <class T>
  T* array(std::int64_t count) {
    void* memory = nullptr;
    const std::size_t bytes = static_cast<std::size_t>(count) * sizeof(T);
    EXPECT_EQ(cudaHostAlloc(&memory, bytes, cudaHostAllocDefault), cudaSuccess);
    std::memset(memory, 0, bytes);
    memory_.push_back(memory);
    return static_cast<T*>(memory);
  }
  template <class Kernel>
  void run(std::int32_t blocks, const typename Kernel::Args& args) {
    const char* error = run_on_gpu<Kernel>(blocks, args);
    ASSERT_EQ(error, nullptr) << Kernel::kName << ": " << error;
  }

 private:
  std::vector<void*> memory_;
};

class ContextGpuTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (const std::string reason = cuda::unavailable_reason(); !reason.empty()) GTEST_SKIP() << reason;
  }
  Gpu gpu_;
};

TEST_F(ContextGpuTest, OperationsGiveTheSameAsOnTheEmulator) {
  check_warp_operations(gpu_);
  check_counters(gpu_);
  for (int i = 0; i < 100; ++i) check_exchange(gpu_, -1, 10'000'000'000);
}

TEST_F(ContextGpuTest, ADeadlineEndsTheWaitForABlockThatSendsNothing) {
  check_exchange(gpu_, 2, 50'000'000);
}

TEST_F(ContextGpuTest, ConversionsGiveTheBitsOfCore) {
  check_conversions(gpu_);
}

}  // namespace
}  // namespace shunt::test
