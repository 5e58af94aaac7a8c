#include "runtime.h"

#include <map>
#include <mutex>
#include <utility>

namespace shunt::bench {
namespace {

/// Kernels that wait for peers give up at the ranks' deadline and say for whom they waited. Who waits for the kernels waits
/// longer, or it would give up first and know nothing.
constexpr std::chrono::milliseconds kLongerThanKernels{2000};

}  // namespace

struct GpuRanks::Table {
  std::mutex mutex;
  std::map<const SharedMemory*, std::weak_ptr<GpuRank>> ranks;
};

GpuRanks::GpuRanks(GpuRuntime runtime) : runtime_(std::move(runtime)), table_(std::make_unique<Table>()) {}
GpuRanks::~GpuRanks() = default;

std::shared_ptr<GpuRank> GpuRanks::find(const MethodContext& context) {
  const std::lock_guard<std::mutex> lock(table_->mutex);
  std::weak_ptr<GpuRank>& known = table_->ranks[&context.memory];
  if (std::shared_ptr<GpuRank> rank = known.lock()) return rank;
  auto rank = std::make_shared<GpuRank>();
  rank->stream = runtime_.make_stream(context);
  known = rank;
  return rank;
}

GpuExchange& GpuRanks::exchange(const MethodContext& context, GpuRank& rank, Carrier carrier) {
  std::unique_ptr<GpuExchange>& exchange = rank.exchanges.at(static_cast<std::size_t>(carrier));
  if (exchange == nullptr) exchange = runtime_.of(carrier).make(context);
  return *exchange;
}

void GpuRanks::drop(GpuRank& rank, Carrier carrier) noexcept {
  std::unique_ptr<GpuExchange>& exchange = rank.exchanges.at(static_cast<std::size_t>(carrier));
  if (exchange == nullptr) return;
  exchange->abort();  // its end may wait for a rank that has none
  exchange.reset();
}

void GpuPhases::settle() {
  stream_.synchronize(deadline_ + kLongerThanKernels);
  if (terms_.cold) stream_.flush();
}

void GpuPhases::run(std::int32_t phase, const std::function<void()>& work, bool device_only) {
  State& state = states_.at(static_cast<std::size_t>(phase));
  const bool plain = !std::exchange(state.ran, true) || !device_only;
  const bool graph = terms_.graph && !plain;
  if (graph && state.graph < 0) {
    stream_.begin_capture();
    work();
    state.graph = stream_.end_capture();
    meet_();  // every rank's graph is on its GPU before one of them waits for another
  }
  struct Gate {
    GpuStream& stream;
    bool closed = false;
    // A rank that fails must not leave its stream shut.
    ~Gate() {
      if (closed) stream.open_gate();
    }
  } gate{stream_};
  if (terms_.gate && !plain) {
    stream_.close_gate();
    gate.closed = true;
  }
  marks_.clear();
  last_ = {};
  marking_ = !graph;
  stream_.record(0);
  if (graph)
    stream_.replay(state.graph);
  else
    work();
  marking_ = false;
  stream_.record(1);
  if (gate.closed) {
    meet_();
    stream_.open_gate();
    gate.closed = false;
  }
  stream_.synchronize(deadline_ + kLongerThanKernels);
  last_us_ = stream_.elapsed_us(0, 1);
  inner_.fill(-1);
  for (const Mark& one : marks_)
    inner_.at(static_cast<std::size_t>(one.inner)) =
        static_cast<std::int64_t>(stream_.elapsed_us(one.from, one.to) * 1e3);
}

void GpuPhases::mark(Inner inner, Kind kind) {
  const auto event = static_cast<std::int32_t>(2 + marks_.size());
  if (!marking_ || event >= GpuStream::kEvents) return;
  stream_.record(event);
  std::int32_t& last = last_.at(static_cast<std::size_t>(kind));
  marks_.push_back({inner, last, event});
  last = event;
}

}  // namespace shunt::bench
