#include <optional>
#include <utility>

#include <shunt/alltoall/cuda.h>

#include "../methods/receipt.h"
#include "method.h"

namespace shunt::bench {
namespace {

AllToAllConfig gpu_config(const MethodContext& context, const ShuntWay& way, bool empty) {
  AllToAllConfig config = alltoall_config(context.workload, context.settings, way);
  config.record_waits = false;  // halves are timed by events
  if (empty) {
    config.max_tokens = 0;
    config.max_recv_rows = -1;
  }
  return config;
}

class GpuShuntMethod final : public GpuMethod {
 public:
  GpuShuntMethod(const MethodContext& context, std::shared_ptr<GpuRank> rank, const GpuTerms& terms,
                 const ShuntWay& way, bool empty)
      : GpuMethod(context, std::move(rank), terms, true),
        empty_(empty),
        view_(way.delivery == Delivery::view),
        num_tokens_(empty ? 0 : routing_.num_tokens),
        all_to_all_(context.transport, gpu_config(context, way, empty),
                    {.limit = {terms.max_blocks}, .expert_output = true}),
        received_(all_to_all_.received()) {
    const cuda::DeviceRows buffer = all_to_all_.token_buffer();
    sent_from_ = tokens_;
    // Where peers cannot be stored to, tokens that lie in the object's own memory spare a copy, as on the CPU. Rows that
    // the object rounds up to 16 bytes are not as the layer before leaves them, and have to be copied.
    if (buffer.data == nullptr || num_tokens_ == 0 || buffer.stride_bytes != workload_.row_bytes()) return;
    device_->copy(buffer.data, tokens_, num_tokens_ * workload_.row_bytes());
    rank_->stream->synchronize(deadline_);
    sent_from_ = static_cast<std::byte*>(buffer.data);
  }

  void start_dispatch() override {
    cuda::TokenInput input;
    input.tokens = in_rows(sent_from_);
    input.num_tokens = num_tokens_;
    input.scales = workload_.num_scales() > 0 ? token_scales_ : nullptr;
    dispatch_sent_.emplace(all_to_all_.dispatch_send(input, {.data = expert_ids_}, rank_->stream->handle()));
  }
  void finish_dispatch() override {
    received_ = all_to_all_.dispatch_recv(take_receipt(dispatch_sent_), rank_->stream->handle());
  }
  void start_combine() override {
    combine_sent_.emplace(all_to_all_.combine_send(all_to_all_.expert_output(), rank_->stream->handle()));
  }
  void finish_combine() override {
    all_to_all_.combine_recv(take_receipt(combine_sent_), {.data = weights_}, out_rows(out_),
                             rank_->stream->handle());
  }

  [[nodiscard]] GpuTouch rows() const override {
    GpuTouch touch;
    touch.rows = received_.rows;
    touch.rows.dtype = point().in_dtype;
    touch.row_pointers = view_ ? received_.row_pointers : nullptr;
    if (workload_.num_scales() > 0) {
      touch.scales = static_cast<const float*>(received_.scales);
      touch.scale_pointers = view_ ? received_.scale_pointers : nullptr;
    }
    touch.num_scales = workload_.num_scales();
    touch.scale_block = kScaleBlock;
    touch.starts = received_.starts;
    touch.counts = received_.counts;
    touch.num_experts = empty_ ? 0 : workload_.partition().count(id_);
    touch.first_expert = workload_.partition().first(id_);
    touch.max_rows = received_.max_rows;
    touch.hidden = point().hidden;
    touch.outputs = all_to_all_.expert_output();
    return touch;
  }
  [[nodiscard]] const std::byte* combined() const override {
    return empty_ ? nullptr : GpuMethod::combined();
  }
  /// What kernels have found: a lost peer, ids out of range.
  void end_block() override { all_to_all_.check(); }

 protected:
  void check_kernels() override { all_to_all_.check(); }

 private:
  bool empty_;
  bool view_;
  std::int64_t num_tokens_;
  cuda::AllToAll all_to_all_;
  cuda::Received received_;
  std::byte* sent_from_ = nullptr;
  std::optional<cuda::Sent<Half::dispatch>> dispatch_sent_;
  std::optional<cuda::Sent<Half::combine>> combine_sent_;
};

}  // namespace

std::unique_ptr<SplitMethod> make_gpu_shunt_method(const MethodContext& context, GpuRanks& ranks,
                                                   const GpuTerms& terms, const ShuntWay& way, bool empty) {
  return std::make_unique<GpuShuntMethod>(context, ranks.find(context), terms, way, empty);
}

}  // namespace shunt::bench
