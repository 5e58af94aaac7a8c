#include "shunt.h"

#include <cstring>
#include <optional>
#include <utility>

#include <fmt/format.h>

#include <shunt/alltoall/all_to_all.h>
#include <shunt/core/error.h>
#include <shunt/pack/kernels.h>

#include "receipt.h"

namespace shunt::bench {
namespace {

class ShuntMethod final : public SplitMethod {
 public:
  ShuntMethod(const MethodContext& context, const AllToAllConfig& config, bool empty)
      : workload_(context.workload),
        rank_(context.transport.world().rank),
        routing_(workload_.routing(workload_.group_of(rank_))),
        empty_(empty),
        tokens_(empty ? 0 : routing_.num_tokens),
        all_to_all_(context.transport, config),
        combined_(context.memory.combined) {
    if (tokens_ == 0) return;
    const MutableRows buffer = all_to_all_.token_buffer();
    for (std::int64_t t = 0; t < tokens_; ++t)
      std::memcpy(buffer.row(t), workload_.token(workload_.group_of(rank_), t),
                  static_cast<std::size_t>(workload_.row_bytes()));
    if (workload_.num_scales() > 0)
      std::memcpy(all_to_all_.token_scales(), workload_.token_scales(workload_.group_of(rank_), 0),
                  static_cast<std::size_t>(tokens_ * workload_.scale_bytes()));
  }

  void dispatch_send() override {
    const Point& point = workload_.point();
    const MutableRows buffer = all_to_all_.token_buffer();
    const TokenInput input{
        .tokens = Rows(buffer.data, tokens_, point.hidden, point.in_dtype, buffer.row_stride_bytes),
        .scales = workload_.num_scales() > 0 ? all_to_all_.token_scales() : nullptr,
        .weights = all_to_all_.config().presum ? routing_.weights.data() : nullptr};
    dispatch_sent_ = all_to_all_.dispatch_send(
        input, View2<const std::int32_t>(routing_.ids.data(), tokens_, point.top_k));
  }

  void dispatch_recv() override { received_ = all_to_all_.dispatch_recv(take_receipt(dispatch_sent_)); }

  void touch() override {
    const Point& point = workload_.point();
    const PackKernels& kernels = pack_kernels();
    const std::int32_t first = workload_.partition().first(rank_);
    const MutableRows output = all_to_all_.expert_output();
    ScaledCopy copy{.hidden = point.hidden,
                    .from_dtype = point.in_dtype,
                    .from_scale = workload_.num_scales() > 0 ? ScaleType::f32 : ScaleType::none,
                    .block = kScaleBlock,
                    .to_dtype = point.out_dtype};
    for_each_row([&](std::int64_t expert, std::int64_t row, const void* from, const void* scales) {
      copy.factor = expert_factor(first + static_cast<std::int32_t>(expert));
      copy.from = from;
      copy.from_scales = scales;
      copy.to = output.row(row);
      kernels.scaled_copy(copy);
    });
  }

  void combine_send() override {
    const MutableRows output = all_to_all_.expert_output();
    combine_sent_ =
        all_to_all_.combine_send(Rows(output.data, received_.starts.back(), workload_.point().hidden,
                                      workload_.point().out_dtype, output.row_stride_bytes));
  }

  void combine_recv() override {
    const Point& point = workload_.point();
    all_to_all_.combine_recv(take_receipt(combine_sent_),
                             View2<const float>(routing_.weights.data(), tokens_, point.top_k),
                             MutableRows(combined_.data(), tokens_, point.hidden, point.out_dtype));
    if (all_to_all_.config().record_waits) record_inner();
  }

  [[nodiscard]] ArrivedRows arrived() const override {
    ArrivedRows found;
    for_each_row([&](std::int64_t, std::int64_t, const void* from, const void* scales) {
      found.rows.push_back(static_cast<const std::byte*>(from));
      if (scales != nullptr) found.scales.push_back(static_cast<const float*>(scales));
    });
    return found;
  }

  [[nodiscard]] const std::byte* combined() const override { return empty_ ? nullptr : combined_.data(); }

  void poison() override {
    if (combined_.bytes() > 0)
      std::memset(combined_.data(), 0xff, static_cast<std::size_t>(combined_.bytes()));
    if (received_.starts.empty()) return;
    const std::int64_t rows = received_.starts.back();
    const MutableRows output = all_to_all_.expert_output();
    for (std::int64_t row = 0; row < rows; ++row)
      std::memset(output.row(row), 0xff, static_cast<std::size_t>(workload_.out_row_bytes()));
    if (auto* scales = const_cast<void*>(received_.scales); scales != nullptr)
      std::memset(scales, 0xff, static_cast<std::size_t>(rows * workload_.scale_bytes()));
    // The rows are the object's own memory, read-only to callers only so that they do not spoil a step;
    // between steps nobody reads them. Views point to tokens, which must stay.
    for (std::int64_t row = 0; row < rows && received_.rows.data != nullptr; ++row)
      std::memset(const_cast<std::byte*>(received_.rows.row(row)), 0xff,
                  static_cast<std::size_t>(workload_.row_bytes()));
  }

  [[nodiscard]] Crossed crossed() const override {
    const ByteCounters& counters = all_to_all_.byte_counters();
    return {.rows = counters.crossed_rows,
            .results = counters.crossed_results,
            .messages = counters.crossed_messages};
  }

  [[nodiscard]] std::span<std::byte> own_tokens() override {
    return {all_to_all_.token_buffer().data, static_cast<std::size_t>(tokens_ * workload_.row_bytes())};
  }

 private:
  /// visit(local expert, row, elements, scales) for every row that carries a token.
  template <class Visit>
  void for_each_row(const Visit& visit) const {
    const auto* scales = static_cast<const std::byte*>(received_.scales);
    const bool view = all_to_all_.config().delivery == Delivery::view;
    for (std::size_t e = 0; e < received_.counts.size(); ++e)
      for (std::int64_t row = received_.starts[e]; row < received_.starts[e] + received_.counts[e]; ++row) {
        const auto at = static_cast<std::size_t>(row);
        if (view)
          visit(static_cast<std::int64_t>(e), row, received_.row_pointers[at],
                received_.scale_pointers.empty() ? nullptr : received_.scale_pointers[at]);
        else
          visit(
              static_cast<std::int64_t>(e), row, static_cast<const void*>(received_.rows.row(row)),
              scales == nullptr ? nullptr : static_cast<const void*>(scales + row * workload_.scale_bytes()));
      }
  }

  void record_inner() {
    const StepTimes& times = all_to_all_.step_times();
    const auto set = [&](Inner inner, std::int64_t ns) { inner_[static_cast<std::size_t>(inner)] = ns; };
    set(Inner::route, times.publish_ns);
    set(Inner::count_exchange, times.dispatch_wait_ns);
    set(Inner::place, times.place_ns);
    set(Inner::exchange, times.move_ns);
    set(Inner::combine_exchange, times.combine_wait_ns);
    set(Inner::reduce, times.reduce_ns);
  }

  const Workload& workload_;
  std::int32_t rank_;
  const Routing& routing_;
  bool empty_;
  std::int64_t tokens_;
  AllToAll all_to_all_;
  PrivateBuffer& combined_;
  Received received_;
  std::optional<Sent<Half::dispatch>> dispatch_sent_;
  std::optional<Sent<Half::combine>> combine_sent_;
};

bool refused(const Workload& workload, const ShuntWay& way) {
  return way.presum && workload.point().dp_size != 1;
}

}  // namespace

AllToAllConfig alltoall_config(const Workload& workload, const MethodSettings& settings,
                               const ShuntWay& way) {
  const Point& point = workload.point();
  AllToAllConfig config;
  config.max_tokens = point.tokens;
  config.num_experts = point.num_experts;
  config.top_k = point.top_k;
  config.hidden = point.hidden;
  config.token_dtype = point.in_dtype;
  config.payload = point.in_dtype;
  config.scale = workload.num_scales() > 0 ? ScaleType::f32 : ScaleType::none;
  config.scale_block = kScaleBlock;
  config.expert_dtype = point.out_dtype;
  config.out_dtype = point.out_dtype;
  config.dp_size = point.dp_size;
  config.layout = settings.layout;
  config.alignment = settings.alignment;
  config.delivery = way.delivery;
  config.max_recv_rows = settings.max_recv_rows;
  config.path = way.path;
  config.presum = way.presum;
  config.record_waits = settings.record_inner;
  config.deadline = settings.deadline;
  return config;
}

std::unique_ptr<SplitMethod> make_shunt_method(const MethodContext& context, const ShuntWay& way) {
  if (refused(context.workload, way))
    throw Error(Errc::unavailable,
                fmt::format("partial sums are for --dp-size 1, not {}", context.workload.point().dp_size));
  return std::make_unique<ShuntMethod>(context, alltoall_config(context.workload, context.settings, way),
                                       false);
}

std::unique_ptr<Method> make_empty_method(const MethodContext& context) {
  AllToAllConfig config = alltoall_config(context.workload, context.settings, {});
  config.max_tokens = 0;
  config.max_recv_rows = -1;
  return std::make_unique<ShuntMethod>(context, config, true);
}

std::int64_t shunt_bytes(const Workload& workload, const MethodSettings& settings, const ShuntWay& way) {
  if (refused(workload, way)) return 0;
  return workspace_size(alltoall_config(workload, settings, way), workload.point().ranks, settings.node_of)
      .total();
}

}  // namespace shunt::bench
