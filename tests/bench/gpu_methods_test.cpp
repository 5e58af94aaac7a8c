#include <gtest/gtest.h>

#include <atomic>
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>

#include <emulator/launcher.h>
#include <emulator/machine.h>

#include <shunt/bench/alltoall_bench.h>
#include <shunt/bench/report.h>
#include <shunt/core/error.h>
#include <shunt/core/random.h>
#include <shunt/pack/cuda.h>
#include <shunt/transport/collectives.h>

#include "gpu/choose.h"
#include "gpu/method.h"
#include "gpu/put_exchange.h"
#include "gpu/touch_kernel.h"

namespace shunt::bench {
namespace {

/// What a rank's GPU says of its memory.
using Memory = std::function<GpuMemory()>;

/// The CPU as a GPU whose stream is always at its end.
class FakeStream final : public GpuStream {
 public:
  explicit FakeStream(Memory memory = {}) : memory_(std::move(memory)) {}
  [[nodiscard]] cuda::Stream handle() const noexcept override { return nullptr; }
  [[nodiscard]] std::unique_ptr<PackDevice> make_device() override { return make_cpu_pack_device(); }
  [[nodiscard]] GpuMemory memory() override { return memory_ ? memory_() : GpuMemory{}; }
  void record(std::int32_t event) override { at_.at(static_cast<std::size_t>(event)) = Clock::now(); }
  [[nodiscard]] double elapsed_us(std::int32_t from, std::int32_t to) override {
    return std::chrono::duration<double, std::micro>(at_.at(static_cast<std::size_t>(to)) -
                                                     at_.at(static_cast<std::size_t>(from)))
        .count();
  }
  void synchronize(std::chrono::milliseconds) override {}
  void flush() override {}
  void begin_capture() override { FAIL() << "what runs at once cannot be captured"; }
  std::int32_t end_capture() override { return 0; }
  void replay(std::int32_t) override {}
  void close_gate() override {}
  void open_gate() noexcept override {}

 private:
  Memory memory_;
  std::array<Clock::time_point, kEvents> at_{};
};

constexpr std::int64_t kMostBytes = 8 << 20;

/// What a test does to the bytes that arrive at a rank.
using Spoil = std::function<void(std::span<const ReceivePiece>)>;

/// Sends and receives over the host's alltoallv.
class FakeExchange final : public GpuExchange {
 public:
  FakeExchange(const MethodContext& context, Spoil spoil)
      : ranks_(static_cast<std::size_t>(context.transport.world().size)),
        deadline_(context.settings.deadline),
        collectives_(context.transport.make_collectives(kMostBytes, Clock::now() + deadline_)),
        spoil_(std::move(spoil)) {}

  void exchange(std::span<const SendPiece> sends, std::span<const ReceivePiece> receives,
                GpuStream&) override {
    std::vector<std::int64_t> send_at(ranks_), send_bytes(ranks_), receive_at(ranks_), receive_bytes(ranks_);
    std::vector<std::byte> sent, received;
    for (std::size_t peer = 0; peer < ranks_; ++peer) {
      send_at[peer] = static_cast<std::int64_t>(sent.size());
      receive_at[peer] = static_cast<std::int64_t>(received.size());
      for (const SendPiece& piece : sends)
        if (static_cast<std::size_t>(piece.peer) == peer) {
          const auto* data = static_cast<const std::byte*>(piece.data);
          sent.insert(sent.end(), data, data + piece.bytes);
          send_bytes[peer] += piece.bytes;
        }
      for (const ReceivePiece& piece : receives)
        if (static_cast<std::size_t>(piece.peer) == peer) receive_bytes[peer] += piece.bytes;
      received.resize(received.size() + static_cast<std::size_t>(receive_bytes[peer]));
    }
    collectives_->alltoallv(sent.data(), send_at, send_bytes, received.data(), receive_at, receive_bytes,
                            deadline_);
    for (const ReceivePiece& piece : receives) {
      if (piece.bytes == 0) continue;
      std::int64_t& from = receive_at[static_cast<std::size_t>(piece.peer)];
      std::memcpy(piece.data, received.data() + from, static_cast<std::size_t>(piece.bytes));
      from += piece.bytes;
    }
    if (spoil_) spoil_(receives);
  }

 private:
  std::size_t ranks_;
  std::chrono::milliseconds deadline_;
  std::unique_ptr<Collectives> collectives_;
  Spoil spoil_;
};

/// The puts of a stream that is always at its end, by the ranks' own transport.
class FakePuts final : public StreamPuts {
 public:
  explicit FakePuts(const MethodContext& context)
      : transport_(context.transport),
        deadline_(context.settings.deadline),
        meeting_(transport_.make_collectives(64, Clock::now() + deadline_)) {}

  void put_signal(std::int32_t peer, const SymmetricBuffer& to, std::int64_t offset, const void* from,
                  std::int64_t bytes, const SymmetricBuffer& words, std::int64_t word, std::uint64_t value,
                  void*) override {
    if (bytes > 0) transport_.put(to, peer, offset, from, bytes);
    transport_.signal(words, peer, word, value);
  }
  void wait(const SymmetricBuffer& words, std::int64_t word, std::uint64_t value, void*) override {
    static_cast<void>(transport_.wait_signal(words, word, value, Clock::now() + deadline_, {"exchange"}));
  }
  void all_to_all(const SymmetricBuffer& to, std::int64_t offset, const void* from, std::int64_t bytes,
                  void*) override {
    const World& world = transport_.world();
    for (std::int32_t peer = 0; peer < world.size; ++peer)
      transport_.put(to, peer, offset + world.rank * bytes,
                     static_cast<const std::byte*>(from) + peer * bytes, bytes);
    transport_.quiet();
    meeting_->barrier(deadline_);
    ++all_to_alls;
  }

  std::int32_t all_to_alls = 0;

 private:
  Transport& transport_;
  std::chrono::milliseconds deadline_;
  std::unique_ptr<Collectives> meeting_;
};

/// The exchange over NVSHMEM, over those.
class FakePutExchange final : public GpuExchange {
 public:
  FakePutExchange(const MethodContext& context, Spoil spoil)
      : ranks_(context.transport.world().size),
        puts_(context),
        exchange_(make_put_exchange(context, puts_)),
        spoil_(std::move(spoil)) {}

  void exchange(std::span<const SendPiece> sends, std::span<const ReceivePiece> receives,
                GpuStream& stream) override {
    exchange_->exchange(sends, receives, stream);
    if (spoil_) spoil_(receives);
  }
  std::byte* allocate(std::int64_t bytes) override { return exchange_->allocate(bytes); }
  bool all_to_all(const void* from, void* to, std::int64_t bytes, GpuStream& stream) override {
    const std::int32_t before = puts_.all_to_alls;
    EXPECT_TRUE(exchange_->all_to_all(from, to, bytes, stream));
    EXPECT_EQ(puts_.all_to_alls, before + (bytes > 0 ? 1 : 0));
    const ReceivePiece all[] = {{0, to, bytes * ranks_}};
    if (spoil_) spoil_(all);
    return true;
  }

 private:
  std::int32_t ranks_;
  FakePuts puts_;
  std::unique_ptr<GpuExchange> exchange_;
  Spoil spoil_;
};

GpuRuntime fake_runtime(const Spoil& spoil = {}) {
  GpuRuntime runtime;
  runtime.make_stream = [](const MethodContext&) { return std::make_unique<FakeStream>(); };
  runtime.of(Carrier::nccl).make = [spoil](const MethodContext& context) {
    return std::make_unique<FakeExchange>(context, spoil);
  };
  runtime.of(Carrier::nvshmem).make = [spoil](const MethodContext& context) {
    return std::make_unique<FakePutExchange>(context, spoil);
  };
  return runtime;
}

AllToAllBenchOptions small(RankMode mode) {
  AllToAllBenchOptions options;
  options.ranks = 3;
  options.mode = mode;
  options.num_experts = 7;
  options.top_k = 3;
  options.hidden = 130;
  options.tokens = {6};
  options.rounds = 1;
  options.iterations = 2;
  options.max_seconds = 4;
  options.write_files = false;
  options.own_clocks = true;
  options.registry = gpu_methods(fake_runtime(), {});
  options.methods = {"cuda/nccl", "cpu/nccl",     "dense/nccl",  "memcpy",
                     "shunt",     "cuda/nvshmem", "cpu/nvshmem", "dense/nvshmem"};
  return options;
}

std::string hash_on_the_cpu(AllToAllBenchOptions options) {
  options.registry = alltoall_methods();
  options.own_clocks = false;
  options.methods = {"shunt"};
  return run_alltoall_bench(options, {"test"}, {}).points.at(0).methods.at(0).result_hash;
}

TEST(GpuMethodsTest, DeliverWhatTheOracleExpectsThroughTheHarness) {
  for (const RankMode mode : {RankMode::processes, RankMode::threads})
    for (const DType in : {DType::bf16, DType::f8e4m3, DType::f32})
      for (const char* routing : {"uniform", "one", "powerlaw:1.5+mask:0.3"}) {
        // Processes differ from threads in nothing that depends on these.
        if (mode == RankMode::processes && (in != DType::f8e4m3 || routing != std::string("uniform")))
          continue;
        AllToAllBenchOptions options = small(mode);
        options.in_dtype = in;
        options.routings = {routing};
        const AllToAllBenchReport report = run_alltoall_bench(options, {"test"}, {});
        ASSERT_EQ(report.points.size(), 1U);
        const PointResult& point = report.points[0];
        EXPECT_EQ(point.clock, "per_rank");
        const std::string expected = hash_on_the_cpu(options);
        ASSERT_EQ(point.methods.size(), 8U);
        for (const MethodResult& method : point.methods) {
          if (method.name == "dense/nvshmem") {
            EXPECT_EQ(method.status, "skipped");
            EXPECT_EQ(method.reason,
                      "its all-to-all has blocks of one size, and 7 experts on 3 ranks are not");
            continue;
          }
          if (method.name == "shunt") {
            EXPECT_EQ(method.status, "skipped");
            EXPECT_NE(method.reason.find("no device memory"), std::string::npos) << method.reason;
            continue;
          }
          EXPECT_EQ(method.status, "ok") << method.name << ": " << method.reason;
          EXPECT_TRUE(method.correct) << method.name;
          if (method.name != "memcpy") {
            EXPECT_EQ(method.result_hash, expected) << method.name << " " << routing;
          }
          ASSERT_NE(method.find("device", "total"), nullptr) << method.name;
          for (const char* half : {"dispatch_send", "dispatch_recv", "combine_send", "combine_recv"})
            EXPECT_NE(method.find("device", half), nullptr) << method.name << " " << half;
          for (const char* part :
               {"pack", "exchange", "unpack", "combine_pack", "combine_exchange", "reduce"})
            EXPECT_EQ(method.find("device", part) != nullptr, method.name != "memcpy")
                << method.name << " " << part;
        }
      }
}

TEST(GpuMethodsTest, SendBlocksOfOneSizeByTheCallForThat) {
  for (const DType in : {DType::bf16, DType::f8e4m3})
    for (const char* routing : {"uniform", "one", "powerlaw:1.5+mask:0.3"}) {
      AllToAllBenchOptions options = small(RankMode::threads);
      options.num_experts = 6;
      options.in_dtype = in;
      options.routings = {routing};
      options.methods = {"dense/nvshmem", "cuda/nvshmem"};
      const PointResult point = run_alltoall_bench(options, {"test"}, {}).points.at(0);
      const std::string expected = hash_on_the_cpu(options);
      for (const MethodResult& method : point.methods) {
        EXPECT_EQ(method.status, "ok") << method.name << ": " << method.reason;
        EXPECT_EQ(method.result_hash, expected) << method.name << " " << routing;
      }
    }
}

TEST(GpuMethodsTest, PutOnlyIntoMemoryOfTheTransport) {
  GpuRuntime runtime = fake_runtime();
  runtime.of(Carrier::nvshmem).unsuited = nvshmem_unsuited;
  AllToAllBenchOptions options = small(RankMode::threads);
  options.registry = gpu_methods(runtime, {});
  options.methods = {"cuda/nvshmem", "dense/nvshmem", "memcpy"};
  const PointResult point = run_alltoall_bench(options, {"test"}, {}).points.at(0);
  for (const MethodResult& method : point.methods)
    if (method.name.ends_with("/nvshmem")) {
      EXPECT_EQ(method.status, "skipped") << method.name;
      EXPECT_EQ(method.reason,
                "the ranks' transport is shm; with --transport nvshmem their memory is NVSHMEM's");
    }
}

TEST(GpuMethodsTest, FailWhereTheExchangeSpoilsBytes) {
  AllToAllBenchOptions options = small(RankMode::threads);
  options.num_experts = 6;
  options.registry =
      gpu_methods(fake_runtime([](std::span<const ReceivePiece> pieces) {
                    // Rows of 130 bfloat16; ids stay as they are.
                    for (const ReceivePiece& piece : pieces)
                      for (std::int64_t i = 0; piece.bytes % 260 == 0 && i < piece.bytes; i += 20)
                        static_cast<std::byte*>(piece.data)[i + 1] ^= std::byte{0x40};
                  }),
                  {});
  const AllToAllBenchReport report = run_alltoall_bench(options, {"test"}, {});
  EXPECT_TRUE(report.failed);
  for (const MethodResult& method : report.points.at(0).methods)
    EXPECT_EQ(method.status, method.name == "memcpy"  ? "ok"
                             : method.name == "shunt" ? "skipped"
                                                      : "failed")
        << method.name << ": " << method.reason;
}

TEST(GpuMethodsTest, AreLeftOutWhereTheirLibraryDoesNotStart) {
  GpuRuntime runtime = fake_runtime();
  runtime.of(Carrier::nccl).make = [](const MethodContext& context) -> std::unique_ptr<GpuExchange> {
    const std::int32_t rank = context.transport.world().rank;
    if (rank == 1) throw Error(Errc::unavailable, "rank 1: it finds no interface");
    throw Error(Errc::unavailable, "rank 1 has not come");
  };
  AllToAllBenchOptions options = small(RankMode::threads);
  options.registry = gpu_methods(runtime, {});
  const PointResult point = run_alltoall_bench(options, {"test"}, {}).points.at(0);
  for (const MethodResult& method : point.methods) {
    const bool skipped =
        method.name.ends_with("/nccl") || method.name == "shunt" || method.name == "dense/nvshmem";
    EXPECT_EQ(method.status, skipped ? "skipped" : "ok") << method.name << ": " << method.reason;
  }
}

TEST(GpuMethodsTest, AreLeftOutOnAllRanksWhereTheirLibraryFailsOnOne) {
  std::atomic<std::int32_t> made = 0;
  std::atomic<bool> failed = false;
  GpuRuntime runtime = fake_runtime();
  runtime.of(Carrier::nccl).make = [&](const MethodContext& context) -> std::unique_ptr<GpuExchange> {
    auto exchange = std::make_unique<FakeExchange>(context, Spoil());
    ++made;
    if (context.transport.world().rank == 1 && !failed.exchange(true))
      throw Error(Errc::unavailable, "it finds no interface");
    return exchange;
  };
  AllToAllBenchOptions options = small(RankMode::threads);
  options.registry = gpu_methods(runtime, {});
  options.methods = {"cuda/nccl", "cpu/nccl", "memcpy"};
  const PointResult point = run_alltoall_bench(options, {"test"}, {}).points.at(0);
  for (const MethodResult& method : point.methods) {
    if (method.name == "cuda/nccl") {
      EXPECT_EQ(method.status, "skipped");
      EXPECT_EQ(method.reason, "rank 1: it finds no interface");
    } else {
      EXPECT_EQ(method.status, "ok") << method.name << ": " << method.reason;
    }
  }
  EXPECT_EQ(made, 6) << "the second method makes it anew on every rank";
}

PointResult run_with_memory(const std::function<GpuMemory(std::int32_t rank)>& memory) {
  GpuRuntime runtime = fake_runtime();
  runtime.make_stream = [memory](const MethodContext& context) {
    const std::int32_t rank = context.transport.world().rank;
    return std::make_unique<FakeStream>([memory, rank] { return memory(rank); });
  };
  AllToAllBenchOptions options = small(RankMode::threads);
  options.num_experts = 6;
  options.registry = gpu_methods(runtime, {});
  options.methods = {"dense/nccl", "memcpy"};
  return run_alltoall_bench(options, {"test"}, {}).points.at(0);
}

MethodResult dense_in(const PointResult& point) {
  for (const MethodResult& method : point.methods) {
    if (method.name == "dense/nccl") return method;
    EXPECT_EQ(method.status, "ok") << method.name << ": " << method.reason;
  }
  ADD_FAILURE() << "no dense/nccl";
  return {};
}

TEST(GpuMethodsTest, CompareWhatTheRanksOfAGpuNeedTogether) {
  const auto two_share = [](std::int64_t shared, std::int64_t alone) {
    return dense_in(run_with_memory([=](std::int32_t rank) {
      return rank == 1 ? GpuMemory{"0000:02:00.0", alone} : GpuMemory{"0000:01:00.0", shared};
    }));
  };
  // Every rank needs as much as any other here, so this is half of what two do.
  const std::string lacking = two_share(std::int64_t{1} << 40, 1).reason;
  std::int64_t needed = 0;
  ASSERT_EQ(std::sscanf(lacking.c_str(),
                        "rank 1: its rows need %" SCNd64 " bytes of device memory, 1 are free", &needed),
            1)
      << lacking;
  EXPECT_EQ(two_share(2 * needed, needed).status, "ok");
  const MethodResult small_gpu = two_share(2 * needed - 1, needed);
  EXPECT_EQ(small_gpu.status, "skipped");
  EXPECT_EQ(small_gpu.reason, "ranks 0, 2 share the GPU 0000:01:00.0 of node 0: their rows need " +
                                  std::to_string(2 * needed) + " bytes of its memory together, " +
                                  std::to_string(2 * needed - 1) + " are free");
  EXPECT_EQ(two_share(0, 0).status, "ok") << "what is not known is not compared";
}

TEST(GpuMethodsTest, AreLeftOutOnAllRanksWhereOneCannotSayWhatIsFree) {
  const MethodResult method = dense_in(run_with_memory([](std::int32_t rank) -> GpuMemory {
    if (rank == 2) throw Error(Errc::out_of_memory, "cudaMemGetInfo: out of memory");
    return {"0000:0" + std::to_string(rank) + ":00.0", std::int64_t{1} << 40};
  }));
  EXPECT_EQ(method.status, "skipped");
  EXPECT_EQ(method.reason, "rank 2: cudaMemGetInfo: out of memory");
}

TEST(GpuMethodsTest, SayWhatTheyCannotDo) {
  AllToAllBenchOptions options = small(RankMode::threads);
  options.ranks = 4;
  options.dp_size = 2;
  const AllToAllBenchReport report = run_alltoall_bench(options, {"test"}, {});
  for (const MethodResult& method : report.points.at(0).methods)
    if (method.name.ends_with("/nccl") || method.name.ends_with("/nvshmem")) {
      EXPECT_EQ(method.status, "skipped") << method.name;
      EXPECT_EQ(method.reason, "it is for --dp-size 1, not 2");
    }
  GpuRuntime none = fake_runtime();
  none.of(Carrier::nccl).unavailable = "no NCCL today";
  none.of(Carrier::nvshmem).unavailable = "no NVSHMEM today";
  for (const MethodSpec& spec : gpu_methods(none, {})) {
    if (spec.name.ends_with("/nccl")) {
      EXPECT_EQ(spec.unavailable, "no NCCL today");
    }
    if (spec.name.ends_with("/nvshmem")) {
      EXPECT_EQ(spec.unavailable, "no NVSHMEM today");
    }
    if (spec.name == "memcpy") {
      EXPECT_EQ(spec.unavailable, "");
    }
  }
  for (const MethodSpec& spec : gpu_methods(fake_runtime(), {.cold = true})) {
    if (spec.name == "torch") {
      EXPECT_NE(spec.unavailable.find("--cold does not reach"), std::string::npos) << spec.unavailable;
    }
  }
  none.unavailable = "no GPU today";
  for (const MethodSpec& spec : gpu_methods(none, {})) EXPECT_NE(spec.unavailable, "") << spec.name;
}

/// Writes down what a stream is told.
class LoggingStream final : public GpuStream {
 public:
  explicit LoggingStream(std::string& log) : log_(log) {}
  [[nodiscard]] cuda::Stream handle() const noexcept override { return nullptr; }
  [[nodiscard]] std::unique_ptr<PackDevice> make_device() override { return nullptr; }
  [[nodiscard]] GpuMemory memory() override { return {}; }
  void record(std::int32_t event) override { log_ += std::to_string(event); }
  [[nodiscard]] double elapsed_us(std::int32_t from, std::int32_t to) override { return 100.0 * from + to; }
  void synchronize(std::chrono::milliseconds deadline) override {
    log_ += "s";
    waited = deadline;
  }
  std::chrono::milliseconds waited{};
  void flush() override { log_ += "f"; }
  void begin_capture() override { log_ += "["; }
  std::int32_t end_capture() override {
    log_ += "]";
    return graphs_++;
  }
  void replay(std::int32_t graph) override { log_ += "r" + std::string(1, static_cast<char>('a' + graph)); }
  void close_gate() override { log_ += "<"; }
  void open_gate() noexcept override { log_ += ">"; }

 private:
  std::string& log_;
  std::int32_t graphs_ = 0;
};

class GpuPhasesTest : public testing::Test {
 protected:
  std::string run(GpuPhases& phases, std::int32_t phase, bool device_only) {
    log_.clear();
    phases.run(
        phase, [this] { log_ += "w"; }, device_only);
    return log_;
  }
  GpuPhases phases(const GpuTerms& terms) {
    return {stream_, terms, std::chrono::seconds(1), [this] { log_ += "m"; }};
  }
  std::string log_;
  LoggingStream stream_{log_};
};

TEST_F(GpuPhasesTest, RunPlainlyTheFirstTimeAndThenBehindTheGate) {
  GpuPhases all = phases({});
  EXPECT_EQ(run(all, 0, true), "0w1s");
  EXPECT_EQ(run(all, 0, true), "<0w1m>s") << "queued whole before the ranks meet and the gate opens";
  EXPECT_EQ(run(all, 1, true), "0w1s") << "each phase has a first time";
  EXPECT_EQ(run(all, 2, false), "0w1s");
  EXPECT_EQ(run(all, 2, false), "0w1s") << "with the host in it there is nothing to queue";
  EXPECT_DOUBLE_EQ(all.last_us(), 1);
}

TEST_F(GpuPhasesTest, CaptureOnceAndReplay) {
  GpuPhases all = phases({.graph = true, .gate = false});
  EXPECT_EQ(run(all, 0, true), "0w1s");
  EXPECT_EQ(run(all, 0, true), "[w]m0ra1s");
  EXPECT_EQ(run(all, 0, true), "0ra1s");
  EXPECT_EQ(run(all, 3, true), "0w1s");
  EXPECT_EQ(run(all, 3, true), "[w]m0rb1s");
  EXPECT_EQ(run(all, 0, true), "0ra1s");
  EXPECT_EQ(run(all, 4, false), "0w1s");
  EXPECT_EQ(run(all, 4, false), "0w1s");
}

TEST_F(GpuPhasesTest, FlushOnlyWhereCold) {
  log_.clear();
  phases({}).settle();
  EXPECT_EQ(log_, "s");
  log_.clear();
  phases({.cold = true}).settle();
  EXPECT_EQ(log_, "sf");
}

TEST_F(GpuPhasesTest, WaitLongerThanKernelsWhichKnowForWhom) {
  GpuPhases all = phases({});
  static_cast<void>(run(all, 0, true));
  EXPECT_GT(stream_.waited, std::chrono::seconds(1));
  stream_.waited = {};
  all.settle();
  EXPECT_GT(stream_.waited, std::chrono::seconds(1));
}

TEST_F(GpuPhasesTest, OpenTheGateWhereAPhaseFails) {
  GpuPhases all = phases({});
  static_cast<void>(run(all, 0, true));
  log_.clear();
  EXPECT_THROW(all.run(
                   0, [] { throw Error(Errc::timeout, "too late"); }, true),
               Error);
  EXPECT_EQ(log_, "<0>");
}

TEST_F(GpuPhasesTest, MeasureHalvesAndPartsApart) {
  GpuPhases all = phases({});
  all.run(
      0,
      [&] {
        all.mark(Inner::pack, GpuPhases::Kind::part);           // event 2
        all.mark(Inner::dispatch_send, GpuPhases::Kind::half);  // event 3
        all.mark(Inner::exchange, GpuPhases::Kind::part);       // event 4
        all.mark(Inner::dispatch_recv, GpuPhases::Kind::half);  // event 5
      },
      true);
  const auto ns = [&](Inner inner) { return all.inner_times().at(static_cast<std::size_t>(inner)); };
  EXPECT_EQ(ns(Inner::pack), 2'000);
  EXPECT_EQ(ns(Inner::dispatch_send), 3'000);
  EXPECT_EQ(ns(Inner::exchange), 204'000);
  EXPECT_EQ(ns(Inner::dispatch_recv), 305'000);
  EXPECT_EQ(ns(Inner::reduce), -1);
}

TEST(ChooseDeviceTest, FallsBackToTheCpuAndSaysWhy) {
  AllToAllBenchOptions options;
  options.device = "gpu";
  EXPECT_THROW(static_cast<void>(choose_device(options)), Error);
  options.device = "cpu";
  EXPECT_EQ(choose_device(options), "");
  const std::string reason = cuda::unavailable_reason();
  if (reason.empty()) GTEST_SKIP() << "there is a CUDA device here";
  for (const char* device : {"cuda", "auto"}) {
    options.device = device;
    EXPECT_EQ(choose_device(options), "CUDA kernels cannot run here (" + reason + "), so this is the CPU");
    EXPECT_EQ(options.device, "cpu");
    EXPECT_FALSE(options.own_clocks);
    EXPECT_EQ(options.transport, "auto");
  }
}

TEST(ChooseDeviceTest, ListsTheMethodsOfADevice) {
  EXPECT_EQ(device_methods("cpu").size(), alltoall_methods().size());
  EXPECT_THROW(static_cast<void>(device_methods("gpu")), Error);
  const std::string reason = cuda::unavailable_reason();
  if (reason.empty()) GTEST_SKIP() << "there is a CUDA device here";
  EXPECT_EQ(device_methods("auto").size(), alltoall_methods().size());
  for (const MethodSpec& spec : device_methods("cuda")) EXPECT_NE(spec.unavailable, "") << spec.name;
}

TEST(PplxTsvTest, HasOneCellForEachName) {
  char folder[] = "/tmp/shunt-pplx-XXXXXX";
  ASSERT_NE(mkdtemp(folder), nullptr);
  AllToAllBenchOptions options = small(RankMode::threads);
  options.methods = {"dense/nccl"};
  options.pplx_tsv = std::string(folder) + "/pplx.tsv";
  const PointResult point = run_alltoall_bench(options, {"test"}, {}).points.at(0);
  std::ifstream in(options.pplx_tsv);
  std::string comment, names, row;
  ASSERT_TRUE(std::getline(in, comment) && std::getline(in, names) && std::getline(in, row));
  EXPECT_EQ(comment.front(), '#');
  EXPECT_EQ(names.find("E\tE/tok\ttok\tdim\tDispatch_lat\tDispatch_bw\tDispatch_bytes\tCombine_lat"), 0U);
  EXPECT_EQ(std::count(names.begin(), names.end(), '\t'), std::count(row.begin(), row.end(), '\t'));
  EXPECT_EQ(row.find("7\t3\t6\t130\tNA\tNA\tNA\tNA\tNA\tNA\t"), 0U) << row;
  const std::string bytes = std::to_string(point.dense_bytes);
  EXPECT_NE(row.find("\t" + bytes + "\tNA\tNA\tNA\tNA\tNA\t"), std::string::npos) << row;
  std::filesystem::remove_all(folder);
}

TEST(PplxTsvTest, HasTheExchangeAloneOrNothing) {
  PointResult point;
  PhaseResult dispatch;
  dispatch.placement = "device";
  dispatch.phase = "dispatch";
  dispatch.us.mean = 123;
  dispatch.rounds = 10;
  MethodResult dense;
  dense.name = "dense/nccl";
  dense.status = "ok";
  PhaseResult total = dispatch;
  total.phase = "total";
  dense.phases = {dispatch, total};
  point.methods = {dense};
  // E, E/tok, tok and dim, then Dispatch and Combine before Torch.
  const auto torch_us = [&] {
    std::istringstream row(pplx_tsv_row(point));
    std::string cell;
    for (int i = 0; i <= 10; ++i) std::getline(row, cell, '\t');
    return cell;
  };
  EXPECT_EQ(torch_us(), "NA") << "a whole dispatch is no exchange";
  PhaseResult exchange = dispatch;
  exchange.phase = "exchange";
  exchange.us.mean = 45;
  point.methods[0].phases.push_back(exchange);
  EXPECT_EQ(torch_us(), "45.000");
}

TEST(TouchKernelTest, HasTheBitsOfTheCpu) {
  for (std::uint64_t seed = 1; seed <= 24; ++seed) {
    Random random(seed);
    const DType ins[] = {DType::bf16, DType::f16, DType::f32, DType::f8e4m3, DType::f8e5m2};
    const DType outs[] = {DType::bf16, DType::f16, DType::f32};
    const auto hidden = static_cast<std::int64_t>(1 + random.below(600));
    const auto experts = static_cast<std::int32_t>(1 + random.below(5));
    std::vector<std::int32_t> starts{0};
    std::vector<std::int32_t> counts;
    for (std::int32_t e = 0; e < experts; ++e) {
      counts.push_back(static_cast<std::int32_t>(random.below(4)));
      starts.push_back(starts.back() + counts.back() + static_cast<std::int32_t>(random.below(3)));
    }
    GpuTouch touch;
    const DType in = ins[seed % 5];
    const DType out = outs[seed % 3];
    const std::int64_t rows = starts.back();
    const std::int64_t in_bytes = hidden * dtype_bytes(in);
    const std::int64_t out_bytes = hidden * dtype_bytes(out);
    std::vector<std::byte> data(static_cast<std::size_t>(rows * in_bytes));
    for (std::byte& byte : data) {
      byte = static_cast<std::byte>(random.below(256));
      // Exponents of all ones would be infinities, which NaN payloads may tell apart.
      if (in != DType::f8e4m3) byte &= std::byte{0xbb};
    }
    for (std::byte& byte : data)
      if (in == DType::f8e4m3 && (byte & std::byte{0x7f}) == std::byte{0x7f}) byte = std::byte{1};
    touch.num_scales = is_fp8(in) ? (hidden + 127) / 128 : 0;
    std::vector<float> scales(static_cast<std::size_t>(rows * touch.num_scales));
    for (float& scale : scales) scale = static_cast<float>(random.uniform()) + 0.01F;
    touch.rows = {data.data(), in, in_bytes};
    touch.scales = scales.data();
    touch.starts = starts.data();
    touch.counts = counts.data();
    touch.num_experts = experts;
    touch.first_expert = static_cast<std::int32_t>(random.below(9));
    touch.max_rows = rows;
    touch.hidden = hidden;
    std::vector<const void*> pointers, scale_pointers;
    for (std::int64_t row = 0; row < rows; ++row) {
      pointers.push_back(data.data() + row * in_bytes);
      scale_pointers.push_back(scales.data() + row * touch.num_scales);
    }
    if (seed % 2 == 0) {
      touch.row_pointers = pointers.data();
      touch.scale_pointers = scale_pointers.data();
    }
    std::vector<std::byte> expected(static_cast<std::size_t>(rows * out_bytes), std::byte{0xcd});
    std::vector<std::byte> got = expected;
    touch.outputs = {expected.data(), out, out_bytes};
    touch_on_cpu(touch);
    touch.outputs.data = got.data();
    emulator::Machine machine({.seed = seed});
    emulator::Launcher(machine).launch<TouchRows>({2, TouchRows::kThreads, 0}, touch);
    machine.run();
    EXPECT_EQ(got, expected) << "seed " << seed << ", " << dtype_name(in) << " to " << dtype_name(out);
  }
}

}  // namespace
}  // namespace shunt::bench
