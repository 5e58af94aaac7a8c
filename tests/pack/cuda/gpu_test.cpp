// The sweep of sweep_test.cpp, on a GPU.
#include <cuda_runtime_api.h>

#include <cstdlib>
#include <cstring>
#include <memory>
#include <stdexcept>

#include <shunt/core/error.h>

#include "case.h"

namespace shunt::test {
namespace {

void require(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
}

/// Device copies of a run's memory, one behind the other with a pattern between, and its calls with their addresses. Every
/// copy lies as far from a multiple of 64 as the original does.
class Gpu {
 public:
  explicit Gpu(const std::vector<CudaRun::Region>& regions) {
    std::size_t end = kGap;
    for (const CudaRun::Region& region : regions) {
      const std::size_t at = (end + 63) / 64 * 64 + reinterpret_cast<std::uintptr_t>(region.data) % 64;
      copies_.push_back({region, at});
      end = at + region.bytes + kGap;
    }
    host_.assign(end, kPattern);
    for (const Copy& copy : copies_) std::memcpy(host_.data() + copy.at, copy.region.data, copy.region.bytes);
    require(cudaMalloc(&device_, end));
    require(cudaMemcpy(device_, host_.data(), end, cudaMemcpyHostToDevice));
    // Pageable memory may still be on its way when a copy returns, and a non-blocking stream does not wait for it.
    require(cudaStreamSynchronize(nullptr));
    require(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
  }
  ~Gpu() {
    cudaStreamDestroy(stream_);
    cudaFree(device_);
  }
  Gpu(const Gpu&) = delete;
  Gpu& operator=(const Gpu&) = delete;

  void make_plan(cuda::PlanInput input, const cuda::Plan& plan, void* workspace, cuda::LaunchLimit limit) {
    input.selections.ids = on_device(input.selections.ids);
    input.selections.live_tokens = on_device(input.selections.live_tokens);
    cuda::make_plan(input,
                    {on_device(plan.counts), on_device(plan.starts), on_device(plan.positions),
                     on_device(plan.selections), on_device(plan.status)},
                    on_device(workspace), stream_, limit);
  }
  void gather(cuda::Gather g, cuda::LaunchLimit limit) {
    move(g.from, g.to, g.positions, g.live_tokens);
    g.scales.data = on_device(g.scales.data);
    g.from_scales.data = on_device(g.from_scales.data);
    cuda::gather(g, stream_, limit);
  }
  void scatter(cuda::Scatter s, cuda::LaunchLimit limit) {
    move(s.from, s.to, s.destinations, s.live_rows);
    s.from_scales.data = on_device(s.from_scales.data);
    s.to_scales.data = on_device(s.to_scales.data);
    cuda::scatter(s, stream_, limit);
  }
  void combine(cuda::Combine c, cuda::LaunchLimit limit) {
    move(c.rows, c.out, c.positions, c.live_tokens);
    c.weights = on_device(c.weights);
    cuda::combine(c, stream_, limit);
  }

  /// Waits, and brings everything back to where it came from.
  void finish() {
    require(cudaStreamSynchronize(stream_));
    require(cudaMemcpy(host_.data(), device_, host_.size(), cudaMemcpyDeviceToHost));
    for (const Copy& copy : copies_) {
      std::memcpy(copy.region.data, host_.data() + copy.at, copy.region.bytes);
      std::memset(host_.data() + copy.at, kPattern, copy.region.bytes);
    }
  }
  [[nodiscard]] bool gaps_intact() const {
    for (const unsigned char byte : host_)
      if (byte != kPattern) return false;
    return true;
  }

 private:
  static constexpr std::size_t kGap = 64;
  static constexpr unsigned char kPattern = 0xa5;
  struct Copy {
    CudaRun::Region region;
    std::size_t at;
  };

  template <class T>
  T* on_device(T* host) const {
    if (host == nullptr) return nullptr;
    const auto address = reinterpret_cast<std::uintptr_t>(host);
    for (const Copy& copy : copies_) {
      const auto start = reinterpret_cast<std::uintptr_t>(copy.region.data);
      if (address >= start && address < start + copy.region.bytes)
        return reinterpret_cast<T*>(static_cast<unsigned char*>(device_) + copy.at + (address - start));
    }
    return static_cast<T*>(device_);  // memory of no bytes, which nobody reads
  }
  template <class Index>
  void move(cuda::DeviceRows& from, cuda::DeviceRows& to, const Index*& rows,
            const std::int32_t*& live) const {
    from.data = on_device(from.data);
    to.data = on_device(to.data);
    rows = on_device(rows);
    live = on_device(live);
  }

  std::vector<Copy> copies_;
  std::vector<unsigned char> host_;
  void* device_ = nullptr;
  cudaStream_t stream_ = nullptr;
};

TEST(PackCudaGpuTest, GivesTheBitsOfTheCpuKernels) {
  if (const std::string reason = cuda::unavailable_reason(); !reason.empty()) GTEST_SKIP() << reason;
  // Fewer under a sanitizer.
  const char* const given = std::getenv("SHUNT_PACK_GPU_CASES");
  const std::uint64_t cases = given == nullptr ? 1000 : std::strtoull(given, nullptr, 10);
  ASSERT_GT(cases, 0U) << "SHUNT_PACK_GPU_CASES";
  for (std::uint64_t seed = 0; seed < cases; ++seed) {
    Random random(seed, 4005);
    const CudaCase c = draw_case(random);
    CudaRun run(c, random);
    Gpu gpu(run.regions());
    run.queue(gpu);
    gpu.finish();
    ASSERT_EQ(run.difference(), "") << "seed " << seed << ": " << describe(c);
    ASSERT_TRUE(gpu.gaps_intact()) << "seed " << seed << ": " << describe(c);
  }
}

}  // namespace
}  // namespace shunt::test
