#include "cublaslt_gemm.h"

#include <cublasLt.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <utility>
#include <vector>

#include <fmt/format.h>

#include <shunt/core/error.h>

#include "cuda_check.h"

namespace shunt::bench {
namespace {

constexpr std::size_t kWorkspaceBytes = std::size_t{32} << 20U;

/// The library is looked for when a product is asked for: it is some hundred MiB.
struct CublasLt {
  decltype(&cublasLtCreate) create = nullptr;
  decltype(&cublasLtDestroy) destroy = nullptr;
  decltype(&cublasLtMatmulDescCreate) desc_create = nullptr;
  decltype(&cublasLtMatmulDescDestroy) desc_destroy = nullptr;
  decltype(&cublasLtMatrixLayoutCreate) layout_create = nullptr;
  decltype(&cublasLtMatrixLayoutDestroy) layout_destroy = nullptr;
  decltype(&cublasLtMatmulPreferenceCreate) preference_create = nullptr;
  decltype(&cublasLtMatmulPreferenceSetAttribute) preference_set = nullptr;
  decltype(&cublasLtMatmulPreferenceDestroy) preference_destroy = nullptr;
  decltype(&cublasLtMatmulAlgoGetHeuristic) heuristic = nullptr;
  decltype(&cublasLtMatmul) matmul = nullptr;
  std::string missing;

  CublasLt() {
    const std::string name = fmt::format("libcublasLt.so.{}", CUBLAS_VER_MAJOR);
    void* const library = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
      const char* const why = dlerror();
      missing = fmt::format("{} cannot be loaded: {}", name, why == nullptr ? "unknown" : why);
      return;
    }
    const auto find = [&](const char* symbol, auto& function) {
      function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(library, symbol));
      if (function == nullptr && missing.empty()) missing = fmt::format("{} has no {}", name, symbol);
    };
    find("cublasLtCreate", create);
    find("cublasLtDestroy", destroy);
    find("cublasLtMatmulDescCreate", desc_create);
    find("cublasLtMatmulDescDestroy", desc_destroy);
    find("cublasLtMatrixLayoutCreate", layout_create);
    find("cublasLtMatrixLayoutDestroy", layout_destroy);
    find("cublasLtMatmulPreferenceCreate", preference_create);
    find("cublasLtMatmulPreferenceSetAttribute", preference_set);
    find("cublasLtMatmulPreferenceDestroy", preference_destroy);
    find("cublasLtMatmulAlgoGetHeuristic", heuristic);
    find("cublasLtMatmul", matmul);
  }
};

const CublasLt& cublaslt() {
  static const CublasLt library;
  return library;
}

void require(const char* what, cublasStatus_t status) {
  if (status != CUBLAS_STATUS_SUCCESS)
    throw Error(status == CUBLAS_STATUS_NOT_SUPPORTED ? Errc::unavailable : Errc::internal,
                fmt::format("{}: status {}", what, static_cast<int>(status)));
}

class CublasLtGemm final : public Gemm {
 public:
  CublasLtGemm(const GemmShape& shape, cudaStream_t stream) : shape_(shape), stream_(stream) {
    const cudaDataType_t type = shape.dtype == DType::bf16 ? CUDA_R_16BF : CUDA_R_32F;
    a_ = upload(GemmInput::a, shape.m * shape.k);
    b_ = upload(GemmInput::b, shape.k * shape.n);
    c_ = allocate(static_cast<std::size_t>(shape.m * shape.n) * 4);
    workspace_ = allocate(kWorkspaceBytes);
    require("cublasLtCreate", cublaslt().create(&handle_));
    require("cublasLtMatmulDescCreate", cublaslt().desc_create(&product_, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    // Its matrices are column-major, so it computes the transposed C = B^T A^T of what lies here by rows.
    const auto m = static_cast<std::uint64_t>(shape.m);
    const auto n = static_cast<std::uint64_t>(shape.n);
    const auto k = static_cast<std::uint64_t>(shape.k);
    require("cublasLtMatrixLayoutCreate", cublaslt().layout_create(&b_layout_, type, n, k, shape.n));
    require("cublasLtMatrixLayoutCreate", cublaslt().layout_create(&a_layout_, type, k, m, shape.k));
    require("cublasLtMatrixLayoutCreate", cublaslt().layout_create(&c_layout_, CUDA_R_32F, n, m, shape.n));
    cublasLtMatmulPreference_t preference = nullptr;
    require("cublasLtMatmulPreferenceCreate", cublaslt().preference_create(&preference));
    const std::size_t workspace = kWorkspaceBytes;
    cublasStatus_t status = cublaslt().preference_set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                                      &workspace, sizeof workspace);
    int found = 0;
    if (status == CUBLAS_STATUS_SUCCESS)
      status = cublaslt().heuristic(handle_, product_, b_layout_, a_layout_, c_layout_, c_layout_, preference,
                                    1, &choice_, &found);
    cublaslt().preference_destroy(preference);
    require("cublasLtMatmulAlgoGetHeuristic", status);
    if (found == 0)
      throw Error(Errc::unavailable, fmt::format("cuBLASLt has no algorithm for {}", gemm_name(shape)));
  }
  ~CublasLtGemm() override {
    cudaStreamSynchronize(stream_);
    for (const cublasLtMatrixLayout_t layout : {a_layout_, b_layout_, c_layout_})
      if (layout != nullptr) cublaslt().layout_destroy(layout);
    if (product_ != nullptr) cublaslt().desc_destroy(product_);
    if (handle_ != nullptr) cublaslt().destroy(handle_);
    for (void* const data : memory_) cudaFree(data);
  }
  CublasLtGemm(const CublasLtGemm&) = delete;
  CublasLtGemm& operator=(const CublasLtGemm&) = delete;

  void run() override {
    const float one = 1;
    const float zero = 0;
    require("cublasLtMatmul",
            cublaslt().matmul(handle_, product_, &one, b_, b_layout_, a_, a_layout_, &zero, c_, c_layout_, c_,
                              c_layout_, &choice_.algo, workspace_, kWorkspaceBytes, stream_));
  }

  void poison() override {
    cuda_require("cudaMemset",
                 cudaMemsetAsync(c_, 0xff, static_cast<std::size_t>(shape_.m * shape_.n) * 4, stream_));
    cuda_require("cudaStreamSynchronize", cudaStreamSynchronize(stream_));
  }

  [[nodiscard]] std::string check() override {
    cuda_require("cudaStreamSynchronize", cudaStreamSynchronize(stream_));
    return check_gemm(shape_, [this](std::int64_t row, std::int64_t column) {
      float value = 0;
      cuda_require("cudaMemcpy", cudaMemcpy(&value, static_cast<const float*>(c_) + row * shape_.n + column,
                                            sizeof value, cudaMemcpyDeviceToHost));
      return value;
    });
  }

 private:
  void* allocate(std::size_t bytes) {
    void* data = nullptr;
    cuda_require("cudaMalloc", cudaMalloc(&data, bytes));
    memory_.push_back(data);
    return data;
  }
  void* upload(GemmInput matrix, std::int64_t elements) {
    std::vector<std::byte> bytes(static_cast<std::size_t>(elements * dtype_bytes(shape_.dtype)));
    for (std::int64_t i = 0; i < elements; ++i)
      store_element(shape_.dtype, bytes.data(), i, gemm_element(matrix, i));
    void* const data = allocate(bytes.size());
    cuda_require("cudaMemcpy", cudaMemcpy(data, bytes.data(), bytes.size(), cudaMemcpyHostToDevice));
    // Pageable memory may still be on its way when a copy returns, and the rank's stream does not wait for it.
    cuda_require("cudaStreamSynchronize", cudaStreamSynchronize(nullptr));
    return data;
  }

  GemmShape shape_;
  cudaStream_t stream_;
  std::vector<void*> memory_;
  void* a_ = nullptr;
  void* b_ = nullptr;
  void* c_ = nullptr;
  void* workspace_ = nullptr;
  cublasLtHandle_t handle_ = nullptr;
  cublasLtMatmulDesc_t product_ = nullptr;
  cublasLtMatrixLayout_t a_layout_ = nullptr;
  cublasLtMatrixLayout_t b_layout_ = nullptr;
  cublasLtMatrixLayout_t c_layout_ = nullptr;
  cublasLtMatmulHeuristicResult_t choice_{};
};

}  // namespace

std::string cublaslt_unavailable() {
  return cublaslt().missing;
}

std::unique_ptr<Gemm> make_cublaslt_gemm(const GemmShape& shape, void* stream) {
  if (!cublaslt().missing.empty()) throw Error(Errc::unavailable, cublaslt().missing);
  return std::make_unique<CublasLtGemm>(shape, static_cast<cudaStream_t>(stream));
}

}  // namespace shunt::bench
