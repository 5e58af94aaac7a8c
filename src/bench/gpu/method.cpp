#include "method.h"

#include <algorithm>
#include <cmath>
#include <string_view>
#include <utility>

#include <fmt/format.h>

#include <shunt/core/error.h>

namespace shunt::bench {
namespace {

constexpr std::int32_t kTouchPhase = 2;

std::size_t at(std::int64_t i) {
  return static_cast<std::size_t>(i);
}

}  // namespace

std::int64_t gpu_token_bytes(const Workload& workload) {
  const Point& point = workload.point();
  return point.tokens * (workload.row_bytes() + workload.scale_bytes() + workload.out_row_bytes() +
                         std::int64_t{point.top_k} * 8);
}

GpuMethod::GpuMethod(const MethodContext& context, std::shared_ptr<GpuRank> rank, const GpuTerms& terms,
                     bool device_only)
    : workload_(context.workload),
      id_(context.transport.world().rank),
      ranks_(context.transport.world().size),
      routing_(workload_.routing(workload_.group_of(id_))),
      rank_(std::move(rank)),
      device_(rank_->stream->make_device()),
      meeting_(context.transport.make_collectives(64, Clock::now() + context.settings.deadline)),
      deadline_(context.settings.deadline),
      phases_(*rank_->stream, terms, deadline_, [this] { meeting_->barrier(deadline_); }),
      device_only_(device_only) {
  const std::int64_t tokens = routing_.num_tokens;
  const std::int32_t group = workload_.group_of(id_);
  tokens_ = allocate<std::byte>(tokens * workload_.row_bytes());
  token_scales_ = allocate<float>(tokens * workload_.num_scales());
  expert_ids_ = allocate<std::int32_t>(tokens * point().top_k);
  weights_ = allocate<float>(tokens * point().top_k);
  out_ = allocate<std::byte>(tokens * workload_.out_row_bytes());
  if (tokens == 0) return;
  device_->write(tokens_, workload_.token(group, 0), tokens * workload_.row_bytes());
  if (workload_.num_scales() > 0)
    device_->write(token_scales_, workload_.token_scales(group, 0), tokens * workload_.scale_bytes());
  device_->write(expert_ids_, routing_.ids.data(), tokens * point().top_k * 4);
  device_->write(weights_, routing_.weights.data(), tokens * point().top_k * 4);
}

void GpuMethod::run_phase(std::int32_t phase, const std::function<void()>& work) {
  run_or_abort([&] { phases_.run(phase, work, device_only_); });
  // An iteration begins with its dispatch; combine adds its parts to those.
  if (phase == 0) inner_.fill(-1);
  const InnerTimes& parts = phases_.inner_times();
  for (std::size_t i = 0; i < parts.size(); ++i)
    if (parts[i] >= 0) inner_[i] = parts[i];
  // Never empty, which would ask for the harness's own stamps.
  span_ = {.begin_ns = 0, .end_ns = std::max<std::int64_t>(1, std::llround(phases_.last_us() * 1e3))};
}

void GpuMethod::run_or_abort(const std::function<void()>& work) {
  const auto abort = [this] {
    for (const auto& exchange : rank_->exchanges)
      if (exchange != nullptr) exchange->abort();
  };
  try {
    work();
  } catch (const Error& error) {
    abort();
    // They know for whom they waited.
    if (error.code() == Errc::timeout) check_kernels();
    const std::string name = fmt::format("rank {}: ", id_);
    if (std::string_view(error.what()).starts_with(name)) throw;
    throw Error(error.code(), name + error.what(), error.peer());
  } catch (...) {
    abort();
    throw;
  }
}

void GpuMethod::ready() {
  run_or_abort([this] { phases_.settle(); });
}

void GpuMethod::touch() {
  // Its own phase is on the device alone, whatever the halves are.
  run_or_abort([this] {
    phases_.run(
        kTouchPhase, [this] { device_->touch(rows()); }, true);
  });
  span_ = {.begin_ns = 0, .end_ns = std::max<std::int64_t>(1, std::llround(phases_.last_us() * 1e3))};
}

ArrivedRows GpuMethod::arrived() const {
  const GpuTouch from = rows();
  ArrivedRows found;
  if (from.num_experts == 0) return found;
  std::vector<std::int32_t> starts(at(from.num_experts) + 1);
  std::vector<std::int32_t> counts(at(from.num_experts));
  device_->read(starts.data(), from.starts, static_cast<std::int64_t>(starts.size()) * 4);
  device_->read(counts.data(), from.counts, static_cast<std::int64_t>(counts.size()) * 4);
  // What a broken method left there must not make this process read beyond its memory.
  std::vector<std::int64_t> where;
  for (std::size_t e = 0; e < counts.size(); ++e)
    for (std::int64_t row = starts[e]; row < std::int64_t{starts[e]} + counts[e]; ++row)
      if (row >= 0 && row < from.max_rows) where.push_back(row);
  const std::int64_t row_bytes = workload_.row_bytes();
  const std::int64_t scale_bytes = workload_.scale_bytes();
  row_copy_.resize(where.size() * at(row_bytes));
  scale_copy_.resize(where.size() * at(workload_.num_scales()));
  std::vector<const void*> pointers(at(from.row_pointers == nullptr ? 0 : from.max_rows));
  std::vector<const void*> scale_pointers(at(from.scale_pointers == nullptr ? 0 : from.max_rows));
  if (!pointers.empty())
    device_->read(pointers.data(), from.row_pointers, from.max_rows * std::int64_t{sizeof(void*)});
  if (!scale_pointers.empty())
    device_->read(scale_pointers.data(), from.scale_pointers, from.max_rows * std::int64_t{sizeof(void*)});
  const bool dense = pointers.empty() && from.rows.stride_bytes == row_bytes;
  for (std::size_t i = 0; i < where.size();) {
    // Rows that lie together are read together.
    std::size_t end = i + 1;
    while (dense && end < where.size() && where[end] == where[end - 1] + 1) ++end;
    const auto rows = static_cast<std::int64_t>(end - i);
    const void* const data =
        pointers.empty() ? static_cast<const std::byte*>(from.rows.data) + where[i] * from.rows.stride_bytes
                         : pointers[at(where[i])];
    if (data == nullptr) return found;
    device_->read(row_copy_.data() + i * at(row_bytes), data, rows * row_bytes);
    if (scale_bytes > 0) {
      const void* const its = scale_pointers.empty()
                                  ? static_cast<const void*>(from.scales + where[i] * workload_.num_scales())
                                  : scale_pointers[at(where[i])];
      device_->read(scale_copy_.data() + i * at(workload_.num_scales()), its, rows * scale_bytes);
    }
    i = end;
  }
  for (std::size_t i = 0; i < where.size(); ++i) {
    found.rows.push_back(row_copy_.data() + i * at(row_bytes));
    if (scale_bytes > 0) found.scales.push_back(scale_copy_.data() + i * at(workload_.num_scales()));
  }
  return found;
}

const std::byte* GpuMethod::combined() const {
  out_copy_.resize(at(routing_.num_tokens * workload_.out_row_bytes()));
  if (!out_copy_.empty()) device_->read(out_copy_.data(), out_, static_cast<std::int64_t>(out_copy_.size()));
  return out_copy_.data();
}

void GpuMethod::poison() {
  device_->fill(out_, 0xff, routing_.num_tokens * workload_.out_row_bytes());
  const GpuTouch now = rows();
  if (now.rows.data != nullptr) device_->fill(now.rows.data, 0xff, now.max_rows * now.rows.stride_bytes);
  if (now.outputs.data != nullptr)
    device_->fill(now.outputs.data, 0xff, now.max_rows * now.outputs.stride_bytes);
  rank_->stream->synchronize(deadline_);
}

}  // namespace shunt::bench
