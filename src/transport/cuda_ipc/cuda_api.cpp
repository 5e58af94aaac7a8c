#include "cuda_ipc/cuda_api.h"

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstring>
#include <utility>

#include <fmt/format.h>

#include <shunt/core/error.h>

#include "cuda_ipc/device_allocations.h"
#include "cuda_ipc/driver.h"

namespace shunt::cuda_ipc {
namespace {

void check(cudaError_t result, const char* what, Errc code = Errc::internal) {
  if (result == cudaSuccess) return;
  // Else the next launch of this thread would find it.
  static_cast<void>(cudaGetLastError());
  throw Error(code, fmt::format("{}: {}", what, cudaGetErrorString(result)));
}

[[nodiscard]] DeviceId id_of(const cudaDeviceProp& properties) {
  DeviceId id{};
  static_assert(sizeof properties.uuid.bytes == sizeof id);
  std::memcpy(id.data(), properties.uuid.bytes, sizeof id);
  return id;
}

class CudaApi final : public DeviceApi {
 public:
  explicit CudaApi(int ordinal);
  ~CudaApi() override;

  [[nodiscard]] const DeviceFacts& device() const noexcept override { return facts_; }
  [[nodiscard]] DeviceMemory memory() override;
  [[nodiscard]] std::optional<bool> reaches(const DeviceId& other) override;
  [[nodiscard]] std::int64_t granule() const noexcept override { return granule_; }
  [[nodiscard]] std::byte* allocate(std::int64_t bytes) override;
  [[nodiscard]] int export_file(const std::byte* memory) override {
    return DeviceAllocations::of_process().export_file(memory);
  }
  [[nodiscard]] std::byte* import_file(int file, std::int64_t bytes) override {
    use();
    return DeviceAllocations::of_process().import(facts_.ordinal, file, bytes);
  }
  [[nodiscard]] std::byte* share(std::byte* memory) override {
    use();
    DeviceAllocations::of_process().share(memory, facts_.ordinal);
    return memory;
  }
  void release(std::byte* memory) noexcept override;
  void copy(void* to, const void* from, std::int64_t bytes) override;
  void store_signal(std::byte* word, std::uint64_t value) override;
  [[nodiscard]] std::uint64_t load_signal(const std::byte* word) override;
  void synchronize() override {
    use();
    check(cudaStreamSynchronize(stream_), "copies to GPU memory");
  }

 private:
  /// The caller may use other devices between the calls.
  void use() const { check(cudaSetDevice(facts_.ordinal), "cudaSetDevice"); }

  DeviceFacts facts_;
  std::int64_t granule_ = 0;
  cudaStream_t stream_ = nullptr;  ///< Copies and signals
  cudaStream_t look_ = nullptr;    ///< Loads of signals, which wait for no copy
  std::uint64_t* seen_ = nullptr;  ///< Pinned
};

CudaApi::CudaApi(int ordinal) {
  facts_.ordinal = ordinal;
  check(cudaSetDevice(ordinal), "cudaSetDevice", Errc::unavailable);
  cudaDeviceProp properties{};
  check(cudaGetDeviceProperties(&properties, ordinal), "cudaGetDeviceProperties", Errc::unavailable);
  facts_.id = id_of(properties);
  facts_.name = properties.name;
  // A call that needs the context makes it, and says why it cannot.
  check(cudaFree(nullptr), "the GPU cannot be used", Errc::unavailable);
  facts_.shares_with_processes =
      has_attribute(CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED, ordinal) &&
      has_attribute(CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED, ordinal);
  granule_ = allocation_granule(ordinal);
  check(cudaHostAlloc(reinterpret_cast<void**>(&seen_), sizeof *seen_, cudaHostAllocDefault), "cudaHostAlloc",
        Errc::unavailable);
  // Not ordered with the default stream, on which the caller's kernels may wait for what goes over these.
  check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreate", Errc::unavailable);
  check(cudaStreamCreateWithFlags(&look_, cudaStreamNonBlocking), "cudaStreamCreate", Errc::unavailable);
}

CudaApi::~CudaApi() {
  static_cast<void>(cudaSetDevice(facts_.ordinal));
  if (stream_ != nullptr) static_cast<void>(cudaStreamDestroy(stream_));
  if (look_ != nullptr) static_cast<void>(cudaStreamDestroy(look_));
  if (seen_ != nullptr) static_cast<void>(cudaFreeHost(seen_));
}

DeviceMemory CudaApi::memory() {
  use();
  std::size_t free_bytes = 0;
  std::size_t total = 0;
  check(cudaMemGetInfo(&free_bytes, &total), "cudaMemGetInfo");
  return {.free_bytes = static_cast<std::int64_t>(free_bytes),
          .total_bytes = static_cast<std::int64_t>(total)};
}

std::optional<bool> CudaApi::reaches(const DeviceId& other) {
  if (other == facts_.id) return true;
  int devices = 0;
  check(cudaGetDeviceCount(&devices), "cudaGetDeviceCount");
  for (int device = 0; device < devices; ++device) {
    cudaDeviceProp properties{};
    check(cudaGetDeviceProperties(&properties, device), "cudaGetDeviceProperties");
    if (id_of(properties) != other) continue;
    int can = 0;
    check(cudaDeviceCanAccessPeer(&can, facts_.ordinal, device), "cudaDeviceCanAccessPeer");
    return can != 0;
  }
  return std::nullopt;
}

std::byte* CudaApi::allocate(std::int64_t bytes) {
  use();
  DeviceAllocations& all = DeviceAllocations::of_process();
  std::byte* const memory = all.create(facts_.ordinal, bytes, facts_.shares_with_processes);
  try {
    check(cudaMemsetAsync(memory, 0, static_cast<std::size_t>(bytes), stream_), "cudaMemset");
    check(cudaStreamSynchronize(stream_), "cudaMemset");
  } catch (...) {
    all.release(memory);
    throw;
  }
  return memory;
}

void CudaApi::release(std::byte* memory) noexcept {
  static_cast<void>(cudaSetDevice(facts_.ordinal));
  // Puts that nobody has waited for.
  static_cast<void>(cudaStreamSynchronize(stream_));
  DeviceAllocations::of_process().release(memory);
}

void CudaApi::copy(void* to, const void* from, std::int64_t bytes) {
  use();
  check(cudaMemcpyAsync(to, from, static_cast<std::size_t>(bytes), cudaMemcpyDefault, stream_), "cudaMemcpy");
}

void CudaApi::store_signal(std::byte* word, std::uint64_t value) {
  use();
  const Driver& driver = Driver::get();
  // The stream writes it, not a kernel: kernels that wait for it may hold every SM. A fence of system scope comes first.
  const auto address = static_cast<CUdeviceptr>(reinterpret_cast<std::uintptr_t>(word));
  const CUresult result = driver.write_value(stream_, address, value, CU_STREAM_WRITE_VALUE_DEFAULT);
  if (result != CUDA_SUCCESS) throw Error(Errc::internal, "cuStreamWriteValue64: " + driver.text(result));
}

std::uint64_t CudaApi::load_signal(const std::byte* word) {
  use();
  check(cudaMemcpyAsync(seen_, word, sizeof *seen_, cudaMemcpyDeviceToHost, look_), "cudaMemcpy");
  check(cudaStreamSynchronize(look_), "cudaMemcpy");
  return *seen_;
}

}  // namespace

std::string cuda_unavailable_reason() {
  int devices = 0;
  const cudaError_t error = cudaGetDeviceCount(&devices);
  if (error != cudaSuccess) return fmt::format("cudaGetDeviceCount: {}", cudaGetErrorString(error));
  if (devices == 0) return "this machine has no CUDA device";
  try {
    static_cast<void>(Driver::get());
  } catch (const Error& missing) {
    return missing.what();
  }
  return {};
}

std::unique_ptr<DeviceApi> make_cuda_api(const std::vector<std::int32_t>& listed, std::int32_t local_rank) {
  int devices = 0;
  const cudaError_t error = cudaGetDeviceCount(&devices);
  if (error == cudaErrorInitializationError) {
    throw Error(
        Errc::unavailable,
        "transport cuda_ipc: CUDA cannot begin in this process; one that starts ranks as processes must "
        "not have used CUDA before (ranks that are threads may)");
  }
  if (const std::string reason = cuda_unavailable_reason(); !reason.empty())
    throw Error(Errc::unavailable, "transport cuda_ipc: " + reason);
  return std::make_unique<CudaApi>(choose_device(listed, local_rank, devices));
}

}  // namespace shunt::cuda_ipc
