#include "conformance/world_case.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <ostream>
#include <thread>

#include "cuda_ipc/cuda_api.h"
#include "cuda_ipc/device_transport.h"
#include "network_namespace.h"
#include "transport/fake_gpus.h"

namespace shunt::conformance {
namespace {

constexpr const char* kTcp = "tcp;ofi_rxm";
constexpr const char* kDelivery = "SHUNT_OFI_DELIVERY";

/// By which this rank's test looks at device memory, apart from the transport under test; null where it has none.
thread_local cuda_ipc::DeviceApi* looking_at = nullptr;

void store_bytes(std::byte* at, const std::vector<std::byte>& content) {
  if (content.empty()) return;
  if (looking_at == nullptr) {
    std::memcpy(at, content.data(), content.size());
  } else {
    looking_at->copy(at, content.data(), static_cast<std::int64_t>(content.size()));
    looking_at->synchronize();
  }
}

[[nodiscard]] bool runs_with(const Backend& backend, std::int32_t ranks) {
  return backend.ranks.empty() ||
         std::find(backend.ranks.begin(), backend.ranks.end(), ranks) != backend.ranks.end();
}

#ifndef SHUNT_CONFORMANCE_ON_GPUS
[[nodiscard]] std::vector<Backend> host_backends() {
  return {
      {.name = "ShmProcesses", .transport = "shm", .mode = RankMode::processes},
      {.name = "ShmThreads", .transport = "shm", .mode = RankMode::threads},
      {.name = "DelayedShmProcesses", .transport = "shm", .mode = RankMode::processes, .delayed = true},
      {.name = "DelayedShmThreads", .transport = "shm", .mode = RankMode::threads, .delayed = true},
      {.name = "DelayedShmWithoutLoadStoreProcesses",
       .transport = "shm",
       .mode = RankMode::processes,
       .delayed = true,
       .hide_load_store = true},
      {.name = "DelayedShmWithoutLoadStoreThreads",
       .transport = "shm",
       .mode = RankMode::threads,
       .delayed = true,
       .hide_load_store = true},
      // Each opens sockets and connects every rank to every other, so not every row takes every number.
      {.name = "OfiTcp",
       .transport = "ofi",
       .nodes = kEachItsOwn,
       .provider = kTcp,
       .ranks = {1, 2, 3, 4, 8}},
      {.name = "OfiTcpTwoNodes", .transport = "ofi", .nodes = 2, .provider = kTcp, .ranks = {4, 8}},
      {.name = "OfiTcpThreads",
       .transport = "ofi",
       .mode = RankMode::threads,
       .nodes = kEachItsOwn,
       .provider = kTcp,
       .ranks = {4}},
      {.name = "OfiTcpCounted",
       .transport = "ofi",
       .nodes = kEachItsOwn,
       .provider = kTcp,
       .ranks = {2, 3, 8},
       .delivery = "counted"},
      {.name = "OfiTcpCountedTwoNodes",
       .transport = "ofi",
       .nodes = 2,
       .provider = kTcp,
       .ranks = {4},
       .delivery = "counted"},
      {.name = "OfiShm", .transport = "ofi", .nodes = kEachItsOwn, .provider = "shm", .ranks = {3}},
      {.name = "DelayedOfiTcp",
       .transport = "ofi",
       .delayed = true,
       .nodes = kEachItsOwn,
       .provider = kTcp,
       .ranks = {4}},
  };
}

[[nodiscard]] std::vector<Backend> fake_gpu_backends() {
  return {{.name = "FakeGpuProcesses", .transport = "shm", .ranks = {1, 2, 4, 8}, .gpus = Gpus::fake},
          {.name = "FakeGpuThreads",
           .transport = "shm",
           .mode = RankMode::threads,
           .ranks = {1, 3, 8},
           .gpus = Gpus::fake},
          {.name = "DelayedFakeGpuProcesses",
           .transport = "shm",
           .delayed = true,
           .ranks = {3},
           .gpus = Gpus::fake},
          {.name = "TwoFakeGpusProcesses", .transport = "shm", .ranks = {7}, .gpus = Gpus::two_fake}};
}
#endif

}  // namespace

LaunchSession* job() {
  // Made when the tests are registered, since under MPI it alone knows how many ranks there are.
  static const std::unique_ptr<LaunchSession> session =
      std::getenv("SHUNT_CONFORMANCE_TRANSPORT") == nullptr
          ? nullptr
          : std::make_unique<LaunchSession>(
                detect_launch(0, [](const char* name) -> const char* { return std::getenv(name); }));
  return session.get();
}

const std::vector<std::int32_t>& rank_counts() {
  static const std::vector<std::int32_t> counts = job() == nullptr || job()->world_size() == 0
                                                      ? std::vector<std::int32_t>{1, 2, 3, 4, 7, 8}
                                                      : std::vector<std::int32_t>{job()->world_size()};
  return counts;
}

const std::vector<Backend>& backends() {
  if (job() != nullptr) {
    const std::string transport = std::getenv("SHUNT_CONFORMANCE_TRANSPORT");
    static const std::vector<Backend> of_job = {
        {.name = "Job", .transport = transport},
        {.name = "DelayedJob", .transport = transport, .delayed = true},
    };
    return of_job;
  }
#ifdef SHUNT_CONFORMANCE_ON_GPUS
  // Few rows: every process takes a second to begin with CUDA.
  static const std::vector<Backend> all = {
      {.name = "GpuProcesses", .transport = "shm", .ranks = {2, 4}, .gpus = Gpus::real},
      {.name = "GpuThreads",
       .transport = "shm",
       .mode = RankMode::threads,
       .ranks = {1, 2, 8},
       .gpus = Gpus::real},
      // One rank is all that one GPU allows. Its memory, signals and collectives go through the library.
      {.name = "NvshmemOne", .transport = "nvshmem", .ranks = {1}, .gpus = Gpus::of_transport},
      {.name = "NcclOne", .transport = "nccl", .ranks = {1}, .gpus = Gpus::of_transport}};
#else
  static const std::vector<Backend> all = [] {
    std::vector<Backend> rows = host_backends();
    for (const Backend& row : fake_gpu_backends()) rows.push_back(row);
    return rows;
  }();
#endif
  return all;
}

void PrintTo(const Backend& backend, std::ostream* out) {
  *out << backend.name;
}

std::string case_name(const testing::TestParamInfo<TransportConformance::ParamType>& info) {
  return std::get<0>(info.param).name + "With" + std::to_string(std::get<1>(info.param)) + "Ranks";
}

void TransportConformance::SetUp() {
  const Backend& backend = std::get<0>(GetParam());
  if (!runs_with(backend, ranks())) GTEST_SKIP() << "this row runs with other numbers of ranks";
  if (backend.gpus == Gpus::real && !cuda_ipc::cuda_unavailable_reason_from_child().empty())
    GTEST_SKIP() << cuda_ipc::cuda_unavailable_reason_from_child();
  // A job's processes are in the namespaces of their hosts already.
  if (backend.transport == "shm" || job() != nullptr) return;
  // First, since the registry asks libfabric, which opens sockets.
  const std::string& reason = testing_support::enter_network_namespace();
  if (!reason.empty()) GTEST_SKIP() << reason;
  for (const TransportInfo& info : transport_registry()) {
    if (info.name == backend.transport && !info.available) GTEST_SKIP() << info.reason;
  }
  if (!backend.delivery.empty()) setenv(kDelivery, backend.delivery.c_str(), 1);
}

void TransportConformance::TearDown() {
  unsetenv(kDelivery);
}

std::vector<RankOutcome> TransportConformance::run(const Body& body) {
  const Backend& backend = std::get<0>(GetParam());
  const LaunchOptions options{.ranks = ranks(),
                              .nodes = backend.nodes == kEachItsOwn ? ranks() : backend.nodes,
                              .mode = backend.mode,
                              .transport = backend.transport,
                              .provider = backend.provider};
  const testing_support::FakeGpus fakes({.devices = backend.gpus == Gpus::two_fake ? 2 : 1});
  const auto open_gpu = [&](std::int32_t local_rank) {
    return backend.gpus == Gpus::real || backend.gpus == Gpus::of_transport
               ? cuda_ipc::make_cuda_api({}, local_rank)
               : fakes.open(local_rank);
  };
  const auto wrap = [&](Transport& host) {
    std::unique_ptr<cuda_ipc::DeviceApi> looking;
    std::unique_ptr<Transport> on_gpus;
    if (backend.gpus != Gpus::none) {
      looking = open_gpu(host.world().local_rank);
      if (backend.gpus != Gpus::of_transport)
        on_gpus =
            std::make_unique<cuda_ipc::DeviceTransport>(host, open_gpu(host.world().local_rank), patience());
    }
    looking_at = looking.get();
    Transport& transport = on_gpus != nullptr ? *on_gpus : host;
    if (!backend.delayed) {
      body(transport);
      return 0;
    }
    const auto wrapped =
        make_delayed(transport, {.seed = 17, .reorder = true, .hide_load_store = backend.hide_load_store});
    body(*wrapped);
    return 0;
  };
  return job() == nullptr ? run_ranks(options, wrap) : job()->run(options, wrap);
}

std::int32_t TransportConformance::outcomes_here() {
  if (job() == nullptr || job()->way() == LaunchWay::local) return ranks();
  if (job()->way() != LaunchWay::node) return 1;
  return parse_rank_environment([](const char* name) -> const char* { return std::getenv(name); }).local_size;
}

void TransportConformance::expect_well(const std::vector<RankOutcome>& outcomes) {
  EXPECT_EQ(outcomes.size(), static_cast<std::size_t>(outcomes_here()));
  for (const RankOutcome& outcome : outcomes) {
    EXPECT_EQ(outcome.exit_status, 0) << "rank " << outcome.rank << ": " << outcome.message;
  }
}

void require(bool good, const std::string& what) {
  if (!good) throw Error(Errc::check_failed, what);
}

std::string message_of(Errc code, const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    require(error.code() == code, std::string("expected ") + errc_name(code) + ", got " +
                                      errc_name(error.code()) + ": " + error.what());
    return error.what();
  }
  throw Error(Errc::check_failed, std::string("expected ") + errc_name(code) + ", but nothing was thrown");
}

void require_contains(const std::string& text, const std::string& part) {
  require(text.find(part) != std::string::npos, "'" + part + "' is not in '" + text + "'");
}

std::byte pattern(std::int32_t from, std::int32_t to, std::int64_t step, std::int64_t at) {
  const std::int64_t value = from * 131 + to * 31 + step * 17 + at * 7 + (at >> 8);
  return static_cast<std::byte>(value % 251 + 1);
}

void fill(std::byte* data, std::int64_t bytes, std::int32_t from, std::int32_t to, std::int64_t step) {
  std::vector<std::byte> content(static_cast<std::size_t>(bytes));
  for (std::int64_t at = 0; at < bytes; ++at)
    content[static_cast<std::size_t>(at)] = pattern(from, to, step, at);
  store_bytes(data, content);
}

void require_filled(const std::byte* data, std::int64_t bytes, std::int32_t from, std::int32_t to,
                    std::int64_t step, const std::string& what) {
  const std::vector<std::byte> content = bytes_at(data, bytes);
  for (std::int64_t at = 0; at < bytes; ++at) {
    const std::byte found = content[static_cast<std::size_t>(at)];
    if (found == pattern(from, to, step, at)) continue;
    throw Error(Errc::check_failed, what + ": byte " + std::to_string(at) + " of " + std::to_string(bytes) +
                                        " from rank " + std::to_string(from) + " to rank " +
                                        std::to_string(to) + " in step " + std::to_string(step) + " is " +
                                        std::to_string(static_cast<int>(found)));
  }
}

std::vector<std::byte> bytes_at(const std::byte* at, std::int64_t bytes) {
  std::vector<std::byte> content(static_cast<std::size_t>(bytes));
  if (bytes == 0) return content;
  if (looking_at == nullptr) {
    std::memcpy(content.data(), at, content.size());
  } else {
    looking_at->copy(content.data(), at, bytes);
    looking_at->synchronize();
  }
  return content;
}

void set_bytes(std::byte* at, std::int64_t bytes, std::byte value) {
  store_bytes(at, std::vector<std::byte>(static_cast<std::size_t>(bytes), value));
}

SharedCounter::SharedCounter() {
  int file = -1;
  if (job() != nullptr && job()->way() != LaunchWay::local) {
    static int made = 0;
    const char* folder = std::getenv("SHUNT_CONFORMANCE_FOLDER");
    if (folder == nullptr)
      throw Error(Errc::invalid_argument, "SHUNT_CONFORMANCE_FOLDER is not set; a job needs it");
    const std::string path = std::string(folder) + "/counter" + std::to_string(made++);
    file = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    // Where a process comes second, this changes nothing.
    if (file < 0 || ftruncate(file, sizeof(std::int32_t)) != 0)
      throw Error(Errc::io, "the file " + path + " of a test's counter cannot be made");
  }
  void* memory = mmap(nullptr, sizeof(std::int32_t), PROT_READ | PROT_WRITE,
                      file < 0 ? MAP_SHARED | MAP_ANONYMOUS : MAP_SHARED, file, 0);
  if (file >= 0) close(file);
  if (memory == MAP_FAILED) throw Error(Errc::unavailable, "no shared page for a test's counter");
  count_ = static_cast<std::int32_t*>(memory);
}

SharedCounter::~SharedCounter() {
  munmap(count_, sizeof(std::int32_t));
}

void SharedCounter::add() const {
  std::atomic_ref(*count_).fetch_add(1);
}

std::int32_t SharedCounter::count() const {
  return std::atomic_ref(*count_).load();
}

void SharedCounter::wait_for(std::int32_t count) const {
  const Deadline end = patience();
  while (this->count() < count) {
    require(Clock::now() < end, "the other ranks did not come");
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

}  // namespace shunt::conformance
