// Cases on a GPU: tokens go up, rows come down, the tests' experts run on the host.
#include "programs/gpu_case.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include <alltoall/formats.h>
#include <alltoall/oracle.h>
#include <shunt/alltoall/cuda.h>
#include <shunt/core/error.h>
#include <shunt/transport/collectives.h>
#include <shunt/transport/transport.h>

#include "programs/gpu_memory.h"

namespace shunt::programs {
namespace {

using oracle::Bytes;

template <class... Parts>
void require(bool good, fmt::format_string<Parts...> what, Parts&&... parts) {
  if (!good) throw Error(Errc::check_failed, fmt::format(what, std::forward<Parts>(parts)...));
}

/// One object of a case and where it stands, as ObjectRun of the sweep is for the CPU.
class GpuRun {
 public:
  GpuRun(Transport& transport, const sweep::ObjectPlan& plan)
      : plan_(plan),
        config_(plan.config),
        rank_(transport.world().rank),
        group_(rank_ / config_.dp_size),
        object_(transport, config_),
        memory_(most_bytes()) {}

  [[nodiscard]] bool done() const { return step_at_ == plan_.steps.size(); }

  void advance() {
    switch (phase_) {
      case 0:
        dispatch_send();
        break;
      case 1:
        dispatch_recv();
        break;
      case 2:
        combined_.emplace(object_.combine_send(results(), stream_.get()));
        break;
      default:
        combine_recv();
        ++step_at_;
    }
    phase_ = (phase_ + 1) % 4;
  }

 private:
  [[nodiscard]] const sweep::StepPlan& step() const { return plan_.steps[step_at_]; }
  [[nodiscard]] const oracle::GroupInput& input() const {
    return reference_->step().groups[static_cast<std::size_t>(group_)];
  }
  [[nodiscard]] std::int64_t given() const { return step().given[static_cast<std::size_t>(group_)]; }
  [[nodiscard]] std::int64_t scale_row_bytes() const {
    return config_.scale == ScaleType::none
               ? 0
               : ((config_.hidden - 1) / config_.scale_block + 1) * scale_bytes(config_.scale);
  }
  [[nodiscard]] cuda::DeviceRows results() const {
    return {.data = results_,
            .dtype = config_.expert_dtype,
            .stride_bytes = config_.hidden * dtype_bytes(config_.expert_dtype)};
  }
  /// Of one step, as dispatch_send() to combine_recv() take it.
  [[nodiscard]] std::int64_t most_bytes() const {
    std::int64_t most = 0;
    for (const sweep::StepPlan& one : plan_.steps)
      most = std::max(most, one.given[static_cast<std::size_t>(group_)]);
    const std::int64_t selections = most * config_.top_k;
    return Arena::place(most * config_.hidden * dtype_bytes(config_.token_dtype)) +
           Arena::place(most * scale_row_bytes()) + Arena::place(selections * 8) +
           Arena::place(selections * 4) + Arena::place(4) +
           Arena::place(object_.max_rows() * config_.hidden * dtype_bytes(config_.expert_dtype)) +
           Arena::place(most * config_.hidden * dtype_bytes(config_.out_dtype));
  }
  /// On the device until the step is over.
  template <class T>
  std::byte* keep(const std::vector<T>& from) {
    return memory_.keep(from, stream_);
  }
  template <class T>
  [[nodiscard]] std::vector<T> download(const T* from, std::int64_t count) const {
    return stream_.download(from, count);
  }
  void finish_calls() {
    require(cudaStreamSynchronize(stream_.get()), "cudaStreamSynchronize");
    object_.check();
  }

  void dispatch_send() {
    reference_.emplace(sweep::make_step(plan_, step()));
    memory_.clear();  // the step before has been waited for
    const std::int64_t row_bytes = config_.hidden * dtype_bytes(config_.token_dtype);
    // What lies beyond the live tokens must not be read.
    Bytes tokens(static_cast<std::size_t>(given() * row_bytes), std::byte{0xff});
    std::memcpy(tokens.data(), input().tokens.data(), input().tokens.size());
    std::vector<std::int64_t> ids(static_cast<std::size_t>(given() * config_.top_k), config_.num_experts + 5);
    std::copy(input().ids.begin(), input().ids.end(), ids.begin());
    cuda::TokenInput sent{
        .tokens = {.data = keep(tokens), .dtype = config_.token_dtype, .stride_bytes = row_bytes},
        .num_tokens = given()};
    const bool with_scales = config_.payload == config_.token_dtype && config_.scale != ScaleType::none;
    if (with_scales) {
      Bytes scales = input().scales;
      scales.resize(static_cast<std::size_t>(given() * scale_row_bytes()));
      sent.scales = keep(scales);
    }
    if (step().use_live_tokens)
      sent.live_tokens = reinterpret_cast<const std::int32_t*>(
          keep(std::vector<std::int32_t>{static_cast<std::int32_t>(input().num_tokens)}));
    cuda::ExpertIds wanted{.data = nullptr, .wide = step().ids_64};
    wanted.data = step().ids_64 ? keep(ids) : keep(std::vector<std::int32_t>(ids.begin(), ids.end()));
    std::vector<float> weights = input().weights;
    weights.resize(static_cast<std::size_t>(given() * config_.top_k));
    weights_ = reinterpret_cast<const float*>(keep(weights));
    dispatched_.emplace(object_.dispatch_send(sent, wanted, stream_.get()));
  }

  void dispatch_recv() {
    const cuda::Received received = object_.dispatch_recv(std::move(*dispatched_), stream_.get());
    finish_calls();
    const oracle::ExpectedRows expected = reference_->received(rank_);
    const std::vector<std::int32_t> starts =
        download(received.starts, static_cast<std::int64_t>(expected.starts.size()));
    const std::vector<std::int32_t> counts =
        download(received.counts, static_cast<std::int64_t>(expected.counts.size()));
    for (std::size_t expert = 0; expert < starts.size(); ++expert)
      require(starts[expert] == expected.starts[expert], "start {} is {}, not {}", expert, starts[expert],
              expected.starts[expert]);
    for (std::size_t expert = 0; expert < counts.size(); ++expert)
      require(counts[expert] == expected.counts[expert], "count {} is {}, not {}", expert, counts[expert],
              expected.counts[expert]);
    const auto rows = static_cast<std::int64_t>(expected.expert_of_row.size());
    const std::int64_t row_bytes = config_.hidden * dtype_bytes(config_.payload);
    const std::int64_t result_bytes = config_.hidden * dtype_bytes(config_.expert_dtype);
    Bytes answers(static_cast<std::size_t>(rows * result_bytes));
    const bool views = config_.delivery == Delivery::view;
    const std::vector<const void*> row_pointers =
        views ? download(received.row_pointers, rows) : std::vector<const void*>{};
    const std::vector<const void*> scale_pointers =
        views && scale_row_bytes() > 0 ? download(received.scale_pointers, rows) : std::vector<const void*>{};
    for (std::int64_t row = 0; row < rows; ++row) {
      const auto at = static_cast<std::size_t>(row);
      const bool padding = expected.expert_of_row[at] < 0;
      if (padding && (views || config_.padding == PaddingRows::untouched)) continue;
      const auto* from =
          views ? static_cast<const std::byte*>(row_pointers[at])
                : static_cast<const std::byte*>(received.rows.data) + row * received.rows.stride_bytes;
      const Bytes got = download(from, row_bytes);
      require(std::memcmp(got.data(), expected.rows.data() + row * row_bytes, got.size()) == 0,
              "row {} of {} differs from the reference", row, rows);
      Bytes scales;
      if (scale_row_bytes() > 0) {
        const auto* scales_at =
            views ? static_cast<const std::byte*>(scale_pointers[at])
                  : static_cast<const std::byte*>(received.scales) + row * scale_row_bytes();
        scales = download(scales_at, scale_row_bytes());
        require(
            std::memcmp(scales.data(), expected.scales.data() + row * scale_row_bytes(), scales.size()) == 0,
            "the scales of row {} of {} differ from the reference", row, rows);
      }
      if (!padding)
        oracle::run_expert(config_, expected.expert_of_row[at], got.data(),
                           scales.empty() ? nullptr : scales.data(), answers.data() + row * result_bytes);
    }
    results_ = keep(answers);
  }

  void combine_recv() {
    const std::int64_t row_bytes = config_.hidden * dtype_bytes(config_.out_dtype);
    // A number in every format, and what must stay beyond the live tokens.
    const Bytes old(static_cast<std::size_t>(given() * row_bytes), std::byte{0x3b});
    std::byte* const out = keep(old);
    object_.combine_recv(std::move(*combined_), {.data = weights_},
                         {.data = out, .dtype = config_.out_dtype, .stride_bytes = row_bytes}, stream_.get(),
                         step().accumulate);
    finish_calls();
    const Bytes got = download(out, static_cast<std::int64_t>(old.size()));
    Bytes wanted = old;
    const oracle::ExpectedOutput expected =
        reference_->combined(group_, step().accumulate ? old.data() : nullptr);
    std::memcpy(wanted.data(), expected.bits.data(), expected.bits.size());
    const std::int64_t width = dtype_bytes(config_.out_dtype);
    for (std::int64_t at = 0; at < static_cast<std::int64_t>(got.size()); at += width) {
      if (std::memcmp(got.data() + at, wanted.data() + at, static_cast<std::size_t>(width)) == 0) continue;
      const bool both_nan = std::isnan(oracle::decode(config_.out_dtype, got.data() + at)) &&
                            std::isnan(oracle::decode(config_.out_dtype, wanted.data() + at));
      require(both_nan, "element {} of combined token {} differs from the reference", at % row_bytes / width,
              at / row_bytes);
    }
  }

  const sweep::ObjectPlan& plan_;
  AllToAllConfig config_;
  std::int32_t rank_;
  std::int32_t group_;
  cuda::AllToAll object_;
  Arena memory_;
  OwnStream stream_;
  std::size_t step_at_ = 0;
  int phase_ = 0;
  std::optional<oracle::Reference> reference_;
  std::byte* results_ = nullptr;
  const float* weights_ = nullptr;
  std::optional<cuda::Sent<Half::dispatch>> dispatched_;
  std::optional<cuda::Sent<Half::combine>> combined_;
};

}  // namespace

std::string gpu_cases_missing() {
  return {};
}

void run_gpu_case(Transport& transport, const sweep::SweepCase& what) {
  std::vector<std::unique_ptr<GpuRun>> runs;
  for (const sweep::ObjectPlan& plan : what.objects)
    runs.push_back(std::make_unique<GpuRun>(transport, plan));
  // Nobody asks for memory any more when the first kernel waits, and nobody gives any back before the last one has ended.
  const auto collectives = transport.make_collectives(8, Clock::now() + std::chrono::seconds(60));
  collectives->barrier(std::chrono::seconds(60));
  const auto done = [&] {
    for (const auto& run : runs)
      if (!run->done()) return false;
    return true;
  };
  while (!done()) {
    for (const auto& run : runs) {
      if (!run->done()) run->advance();
    }
  }
  collectives->barrier(std::chrono::seconds(60));
}

}  // namespace shunt::programs
