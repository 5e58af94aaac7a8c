#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "../methods/shunt.h"
#include "runtime.h"

namespace shunt::bench {

/// A method whose tokens, rows and results lie in the memory of a GPU. A subclass puts its halves on the stream; timing,
/// touch and checks are done here. It adds itself to gpu_methods() by a MethodSpec, and may stand in a file of its own.
class GpuMethod : public SplitMethod {
 public:
  void touch() final;
  [[nodiscard]] ArrivedRows arrived() const override;
  [[nodiscard]] const std::byte* combined() const override;
  void poison() override;
  void run_phase(std::int32_t phase, const std::function<void()>& work) final;
  [[nodiscard]] void* stream() const noexcept final { return rank_->stream->handle(); }
  [[nodiscard]] Span own_span() const noexcept final { return span_; }
  void ready() final;
  void dispatch_send() final {
    start_dispatch();
    phases_.mark(Inner::dispatch_send, GpuPhases::Kind::half);
  }
  void dispatch_recv() final {
    finish_dispatch();
    phases_.mark(Inner::dispatch_recv, GpuPhases::Kind::half);
  }
  void combine_send() final {
    start_combine();
    phases_.mark(Inner::combine_send, GpuPhases::Kind::half);
  }
  void combine_recv() final {
    finish_combine();
    phases_.mark(Inner::combine_recv, GpuPhases::Kind::half);
  }

 protected:
  /// device_only: the halves put work on the stream and neither read nor wait, so that they can be captured in a graph.
  GpuMethod(const MethodContext& context, std::shared_ptr<GpuRank> rank, const GpuTerms& terms,
            bool device_only);

  virtual void start_dispatch() = 0;
  virtual void finish_dispatch() = 0;
  virtual void start_combine() = 0;
  virtual void finish_combine() = 0;
  /// Throws what kernels have found that explains why work did not end.
  virtual void check_kernels() {}
  /// Where the rows are after dispatch, and where results go.
  [[nodiscard]] virtual GpuTouch rows() const = 0;

  template <class T>
  T* allocate(std::int64_t count) {
    return static_cast<T*>(device_->allocate(count * static_cast<std::int64_t>(sizeof(T))));
  }
  [[nodiscard]] cuda::DeviceRows in_rows(void* data) const {
    return {data, point().in_dtype, workload_.row_bytes()};
  }
  [[nodiscard]] cuda::DeviceRows out_rows(void* data) const {
    return {data, point().out_dtype, workload_.out_row_bytes()};
  }
  [[nodiscard]] cuda::Scales scales(void* data) const {
    cuda::Scales of;
    of.data = data;
    of.type = workload_.num_scales() > 0 ? ScaleType::f32 : ScaleType::none;
    of.block = kScaleBlock;
    return of;
  }
  [[nodiscard]] const Point& point() const noexcept { return workload_.point(); }
  void mark(Inner inner) { phases_.mark(inner, GpuPhases::Kind::part); }

  const Workload& workload_;
  std::int32_t id_;     ///< Of this rank
  std::int32_t ranks_;  ///< R
  const Routing& routing_;
  std::shared_ptr<GpuRank> rank_;
  std::unique_ptr<PackDevice> device_;
  std::unique_ptr<Collectives> meeting_;
  std::chrono::milliseconds deadline_;
  GpuPhases phases_;
  bool device_only_;
  // In device memory, as the layer before leaves and the one behind takes them:
  std::byte* tokens_ = nullptr;         ///< [T, H]
  float* token_scales_ = nullptr;       ///< [T, num_scales]
  std::int32_t* expert_ids_ = nullptr;  ///< [T, K]
  float* weights_ = nullptr;            ///< [T, K]
  std::byte* out_ = nullptr;            ///< [T, H] of out_dtype

 private:
  /// Runs `work`; where it fails, what peers may wait in is ended, so that nothing waits for it, and the error names the
  /// rank.
  void run_or_abort(const std::function<void()>& work);

  Span span_{};
  mutable std::vector<std::byte> out_copy_, row_copy_;
  mutable std::vector<float> scale_copy_;
};

/// Bytes of device memory that a rank's tokens, ids, weights and results take.
[[nodiscard]] std::int64_t gpu_token_bytes(const Workload& workload);

/// Our pack kernels with sends and receives between: `padded`, every (rank, expert) block at its full capacity of T
/// rows, sizes known beforehand; else exact bytes, sizes by an exchange of counts that the host waits for. `on_cpu`: the
/// packing is done by the CPU, with copies from and to the device around.
struct PackedWay {
  bool padded = false;
  bool on_cpu = false;
  Carrier carrier = Carrier::nccl;
};
[[nodiscard]] std::unique_ptr<Method> make_gpu_packed_method(const MethodContext& context, GpuRanks& ranks,
                                                             const GpuTerms& terms, const PackedWay& way);
/// shunt::cuda::AllToAll; `empty`: with no tokens.
[[nodiscard]] std::unique_ptr<SplitMethod> make_gpu_shunt_method(const MethodContext& context,
                                                                 GpuRanks& ranks, const GpuTerms& terms,
                                                                 const ShuntWay& way, bool empty);
/// Floor: as many bytes as arrive in dispatch, and as come back in combine, copied within device memory.
[[nodiscard]] std::unique_ptr<Method> make_gpu_copy_method(const MethodContext& context, GpuRanks& ranks,
                                                           const GpuTerms& terms);

/// Every method of `shunt bench alltoall --device cuda`, in the order of the tables.
[[nodiscard]] std::vector<MethodSpec> gpu_methods(const GpuRuntime& runtime, const GpuTerms& terms);

}  // namespace shunt::bench
