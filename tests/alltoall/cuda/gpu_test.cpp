// AllToAll on a GPU, with 1 to 8 ranks as threads that share it: the cases of the sweep bit for bit, a captured graph
// replayed with changing counts, and a rank that never comes. Skipped with the reason where there is no GPU.
//
// Environment:
//   SHUNT_GPU_SWEEP_CASES  number of cases, default 320
//   SHUNT_SWEEP_CASE       run this one case only, as a failure's message says
#include <cuda_runtime_api.h>

#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <alltoall/sweep_case.h>
#include <shunt/alltoall/cuda.h>
#include <shunt/core/error.h>

#include "gpu_memory.h"
#include "phases.h"
#include "replay.h"
#include "step_run.h"

namespace gpu {
namespace {

using shunt::Half;

std::uint64_t number_from(const char* name, std::uint64_t otherwise) {
  const char* text = std::getenv(name);
  return text == nullptr ? otherwise : std::strtoull(text, nullptr, 10);
}

/// Copies of a step's memory on the device, each as far from a multiple of 64 as the original.
class Mirror {
 public:
  explicit Mirror(const std::vector<StepRun::Region>& regions) {
    std::size_t end = kGap;
    for (const StepRun::Region& region : regions) {
      const std::size_t at = (end + 63) / 64 * 64 + reinterpret_cast<std::uintptr_t>(region.data) % 64;
      copies_.push_back({region, at});
      end = at + region.bytes + kGap;
    }
    require(cudaMalloc(&device_, end));
    upload_all();
  }
  ~Mirror() { cudaFree(device_); }
  Mirror(const Mirror&) = delete;
  Mirror& operator=(const Mirror&) = delete;

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
  shunt::cuda::DeviceRows on_device(shunt::cuda::DeviceRows rows) const {
    rows.data = on_device(rows.data);
    return rows;
  }
  void upload_all() const {
    for (const Copy& copy : copies_) upload(copy);
    // Pageable memory may still be on its way when a copy returns, and the streams of the ranks do not wait for it.
    require(cudaStreamSynchronize(nullptr));
  }
  void download_all() const {
    for (const Copy& copy : copies_)
      require(cudaMemcpy(copy.region.data, static_cast<unsigned char*>(device_) + copy.at, copy.region.bytes,
                         cudaMemcpyDeviceToHost));
  }

 private:
  static constexpr std::size_t kGap = 64;
  struct Copy {
    StepRun::Region region;
    std::size_t at;
  };
  void upload(const Copy& copy) const {
    require(cudaMemcpy(static_cast<unsigned char*>(device_) + copy.at, copy.region.data, copy.region.bytes,
                       cudaMemcpyHostToDevice));
  }
  std::vector<Copy> copies_;
  void* device_ = nullptr;
};

template <class T>
std::vector<T> download(const T* from, std::int64_t count) {
  std::vector<T> to(static_cast<std::size_t>(count));
  require(cudaMemcpy(to.data(), from, to.size() * sizeof(T), cudaMemcpyDeviceToHost));
  return to;
}

/// What a rank has received, copied to the host.
class Download {
 public:
  Download(const shunt::AllToAllConfig& config, std::int32_t num_ranks, std::int32_t rank,
           const shunt::cuda::Received& r) {
    const std::int32_t local = shunt::ExpertPartition{config.num_experts, num_ranks}.count(rank);
    starts_ = download(r.starts, local + 1);
    counts_ = download(r.counts, local);
    if (r.counts_by_group != nullptr)
      by_group_ = download(r.counts_by_group, std::int64_t{local} * (num_ranks / config.dp_size));
    num_rows_ = download(r.num_rows, 1)[0];
    host.starts = starts_;
    host.counts = counts_;
    host.counts_by_group = by_group_;
    host.num_rows = num_rows_;
    const std::int64_t width = starts_.back();
    const std::int64_t row_bytes = config.hidden * shunt::dtype_bytes(config.payload);
    const std::int64_t scale_bytes = config.scale == shunt::ScaleType::none
                                         ? 0
                                         : (config.hidden + config.scale_block - 1) / config.scale_block *
                                               shunt::scale_bytes(config.scale);
    const bool view = config.delivery == shunt::Delivery::view;
    std::vector<const void*> rows;
    std::vector<const void*> scales;
    if (view) rows = download(r.row_pointers, width);
    if (view && scale_bytes != 0) scales = download(r.scale_pointers, width);
    for (std::int64_t i = 0; i < width; ++i) {
      const auto at = static_cast<std::size_t>(i);
      host.rows.push_back(fetch(
          view ? rows[at] : static_cast<const std::byte*>(r.rows.data) + i * r.rows.stride_bytes, row_bytes));
      if (scale_bytes != 0)
        host.scales.push_back(fetch(
            view ? scales[at] : static_cast<const std::byte*>(r.scales) + i * scale_bytes, scale_bytes));
    }
  }
  ReceivedOnHost host;

 private:
  const std::byte* fetch(const void* from, std::int64_t bytes) {
    if (from == nullptr) return nullptr;
    data_.push_back(download(static_cast<const std::byte*>(from), bytes));
    return data_.back().data();
  }
  std::vector<std::int32_t> starts_, counts_, by_group_;
  std::int32_t num_rows_ = 0;
  std::deque<std::vector<std::byte>> data_;
};

/// One rank of one object.
struct Rank {
  std::unique_ptr<shunt::cuda::AllToAll> object;
  std::unique_ptr<OwnStream> stream;
  std::unique_ptr<StepRun> run;
  std::unique_ptr<Mirror> mirror;
  std::optional<shunt::cuda::Sent<Half::dispatch>> dispatched;
  std::optional<shunt::cuda::Sent<Half::combine>> combined;
};

void finish(std::vector<Rank>& ranks) {
  for (Rank& rank : ranks) require(cudaStreamSynchronize(rank.stream->get()));
}

/// What check() says where the kernels have found what the step is to bring: overflow, or nothing.
void expect_finding(Rank& rank) {
  bool overflow = false;
  try {
    rank.object->check();
  } catch (const shunt::Error& error) {
    if (error.code() != shunt::Errc::overflow || !rank.run->is_void()) throw;
    overflow = true;
  }
  if (overflow != rank.run->is_void()) throw std::runtime_error("no error, although rows overflow");
}

/// One step on all ranks, which only the device orders until the rows are there, and again until the sums are.
void run_step(const sweep::ObjectPlan& plan, const sweep::StepPlan& step, std::vector<Rank>& ranks) {
  oracle::Reference reference(sweep::make_step(plan, step));
  for (std::size_t i = 0; i < ranks.size(); ++i) {
    Rank& rank = ranks[i];
    rank.run = std::make_unique<StepRun>(plan, step, reference, static_cast<std::int32_t>(i));
    rank.mirror = std::make_unique<Mirror>(rank.run->regions());
  }
  for (Rank& rank : ranks) {
    shunt::cuda::TokenInput tokens = rank.run->tokens();
    tokens.tokens = rank.mirror->on_device(tokens.tokens);
    tokens.scales = rank.mirror->on_device(tokens.scales);
    tokens.live_tokens = rank.mirror->on_device(tokens.live_tokens);
    shunt::cuda::ExpertIds ids = rank.run->ids();
    ids.data = rank.mirror->on_device(ids.data);
    rank.dispatched.emplace(rank.object->dispatch_send(tokens, ids, rank.stream->get()));
    static_cast<void>(rank.object->dispatch_recv(std::move(*rank.dispatched), rank.stream->get()));
  }
  finish(ranks);
  // Here already: combine_send would throw it and launch nothing.
  for (Rank& rank : ranks) expect_finding(rank);
  for (std::size_t i = 0; i < ranks.size(); ++i) {
    Rank& rank = ranks[i];
    const Download came(plan.config, plan.num_ranks, static_cast<std::int32_t>(i), rank.object->received());
    rank.run->check_received(came.host);
    rank.run->run_experts(came.host, rank.run->results({}));
    rank.mirror->upload_all();
  }
  for (Rank& rank : ranks) {
    rank.combined.emplace(
        rank.object->combine_send(rank.mirror->on_device(rank.run->results({})), rank.stream->get()));
    shunt::cuda::Weights weights = rank.run->weights();
    weights.data = rank.mirror->on_device(weights.data);
    rank.object->combine_recv(std::move(*rank.combined), weights, rank.mirror->on_device(rank.run->out()),
                              rank.stream->get(), rank.run->accumulate());
  }
  finish(ranks);
  for (Rank& rank : ranks) {
    rank.mirror->download_all();
    rank.run->check_out();
    rank.object->check();
  }
}

void run_case(const sweep::SweepCase& what) {
  shunt::Random dice(what.seed, 505);
  for (const sweep::ObjectPlan& object : what.objects) {
    const shunt::cuda::AllToAllOptions options{.limit = {static_cast<std::int32_t>(dice.below(16))},
                                               .expert_output = dice.below(2) == 0};
    std::vector<Rank> ranks(static_cast<std::size_t>(what.num_ranks));
    const Phase set_up = {.each =
                              [&](std::int32_t rank, shunt::Transport& transport) {
                                Rank& mine = ranks[static_cast<std::size_t>(rank)];
                                mine.object = std::make_unique<shunt::cuda::AllToAll>(transport,
                                                                                      object.config, options);
                                mine.stream = std::make_unique<OwnStream>();
                              },
                          .alone = {}};
    const Phase steps = {.each = {}, .alone = [&] {
                           for (const sweep::StepPlan& step : object.steps) run_step(object, step, ranks);
                         }};
    const Phase tear_down = {
        .each = [&](std::int32_t rank, shunt::Transport&) { ranks[static_cast<std::size_t>(rank)] = {}; },
        .alone = {},
        .always = true};
    run_phases(what.num_ranks, {set_up, steps, tear_down}, "cuda_ipc");
  }
}

TEST(AllToAllCudaGpuTest, EqualsTheReferenceByBits) {
  if (const std::string reason = missing(); !reason.empty()) GTEST_SKIP() << reason;
  const std::uint64_t single = number_from("SHUNT_SWEEP_CASE", 0);
  const std::uint64_t cases = single != 0 ? 1 : number_from("SHUNT_GPU_SWEEP_CASES", 320);
  for (std::uint64_t i = 0; i < cases; ++i) {
    const std::uint64_t seed = single != 0 ? single : 9'000'000 + i;
    try {
      run_case(make_gpu_case(seed));
    } catch (const std::exception& error) {
      FAIL() << "case " << seed << " (" << sweep::describe(make_gpu_case(seed).objects[0])
             << "): " << error.what() << "; rerun with SHUNT_SWEEP_CASE=" << seed;
    }
  }
}

TEST(AllToAllCudaGpuTest, ReplaysAGraph1000TimesWithChangingCounts) {
  if (const std::string reason = missing(); !reason.empty()) GTEST_SKIP() << reason;
  constexpr std::int32_t kRanks = 4;
  constexpr std::int32_t kExperts = 9;
  struct Member {
    std::unique_ptr<shunt::cuda::AllToAll> object;
    std::unique_ptr<OwnStream> stream;
    std::unique_ptr<SharedStep> memory;
    cudaGraphExec_t graph = nullptr;
  };
  std::vector<Member> members(kRanks);
  const auto at = [](std::int32_t rank) { return static_cast<std::size_t>(rank); };
  const Phase set_up = {.each =
                            [&](std::int32_t rank, shunt::Transport& transport) {
                              Member& m = members[at(rank)];
                              m.object = std::make_unique<shunt::cuda::AllToAll>(
                                  transport, ReplayStep::config(kExperts), shunt::cuda::AllToAllOptions{});
                              m.stream = std::make_unique<OwnStream>();
                              m.memory = std::make_unique<SharedStep>();
                            },
                        .alone = {}};
  const Phase capture = {.each = {}, .alone = [&] {
                           for (Member& m : members) {
                             const SharedStep& step = *m.memory;
                             const cudaStream_t stream = m.stream->get();
                             require(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
                             auto sent = m.object->dispatch_send(step.tokens(), step.ids(), stream);
                             const auto received = m.object->dispatch_recv(std::move(sent), stream);
                             auto returned = m.object->combine_send(received.rows, stream);
                             m.object->combine_recv(std::move(returned), step.weights(), step.out(), stream);
                             cudaGraph_t graph = nullptr;
                             require(cudaStreamEndCapture(stream, &graph));
                             require(cudaGraphInstantiate(&m.graph, graph, 0));
                             require(cudaGraphDestroy(graph));
                             require(cudaGraphUpload(m.graph, stream));
                             require(cudaStreamSynchronize(stream));
                           }
                         }};
  const Phase replay = {.each = {}, .alone = [&] {
                          for (std::uint64_t number = 0; number < 1000; ++number) {
                            for (std::int32_t rank = 0; rank < kRanks; ++rank) {
                              Member& m = members[at(rank)];
                              m.memory->step.fill(number, rank, kExperts);
                              m.memory->show();
                              require(cudaGraphLaunch(m.graph, m.stream->get()));
                            }
                            for (std::int32_t rank = 0; rank < kRanks; ++rank) {
                              Member& m = members[at(rank)];
                              require(cudaStreamSynchronize(m.stream->get()));
                              m.object->check();
                              m.memory->fetch();
                              m.memory->step.check(number, rank);
                            }
                          }
                        }};
  const Phase tear_down = {.each =
                               [&](std::int32_t rank, shunt::Transport&) {
                                 Member& m = members[at(rank)];
                                 if (m.graph != nullptr) cudaGraphExecDestroy(m.graph);
                                 m = {};
                               },
                           .alone = {},
                           .always = true};
  run_phases(kRanks, {set_up, capture, replay, tear_down}, "cuda_ipc");
}

/// Rank 2 stops before its first call, or where `after_dispatch` behind dispatch_recv; the others must say so.
void stop_rank_2(bool after_dispatch) {
  sweep::ObjectPlan object;
  object.num_ranks = 4;
  object.config.max_tokens = 8;
  object.config.num_experts = 8;
  object.config.top_k = 2;
  object.config.hidden = 64;
  object.config.deadline = std::chrono::seconds(2);
  struct Member {
    std::unique_ptr<shunt::cuda::AllToAll> object;
    std::unique_ptr<OwnStream> stream;
  };
  std::vector<Member> members(4);
  const auto take_part = [&](std::int32_t rank, shunt::Transport& /*transport*/) {
    const bool stops = rank == 2;
    if (stops && !after_dispatch) return;
    shunt::cuda::AllToAll& mine = *members[static_cast<std::size_t>(rank)].object;
    const cudaStream_t stream = members[static_cast<std::size_t>(rank)].stream->get();
    const shunt::cuda::Received received = mine.dispatch_recv(mine.dispatch_send({}, {}, stream), stream);
    if (after_dispatch && !stops) mine.combine_recv(mine.combine_send(received.rows, stream), {}, {}, stream);
    require(cudaStreamSynchronize(stream));
    if (stops) return;
    try {
      mine.check();
    } catch (const shunt::Error& error) {
      const std::string half = after_dispatch ? "combine" : "dispatch";
      if (error.peer() != 2 || std::string(error.what()).find(half) == std::string::npos) throw;
      return;
    }
    throw std::runtime_error("rank " + std::to_string(rank) + ": no error, although rank 2 stopped");
  };
  run_phases(
      4,
      {{.each =
            [&](std::int32_t rank, shunt::Transport& transport) {
              Member& mine = members[static_cast<std::size_t>(rank)];
              mine.object = std::make_unique<shunt::cuda::AllToAll>(transport, object.config);
              // Here, since it may wait for kernels that run.
              mine.stream = std::make_unique<OwnStream>();
            },
        .alone = {}},
       {.each = take_part, .alone = {}},
       {.each = [&](std::int32_t rank, shunt::Transport&) { members[static_cast<std::size_t>(rank)] = {}; },
        .alone = {},
        .always = true}},
      "cuda_ipc");
}

TEST(AllToAllCudaGpuTest, NamesARankThatNeverComes) {
  if (const std::string reason = missing(); !reason.empty()) GTEST_SKIP() << reason;
  stop_rank_2(false);
}

TEST(AllToAllCudaGpuTest, NamesARankThatStopsAfterDispatch) {
  if (const std::string reason = missing(); !reason.empty()) GTEST_SKIP() << reason;
  stop_rank_2(true);
}

}  // namespace
}  // namespace gpu
