#include "torch_peer.h"

#include <sched.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <map>
#include <mutex>
#include <thread>
#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <shunt/core/error.h>

#include "helper_process.h"
#include "peer_network.h"
#include "shared_memory.h"

namespace shunt::bench {
namespace {

namespace fs = std::filesystem;
using std::chrono::milliseconds;

/// Importing PyTorch takes a second, and many at once on few cores take many: a shorter --deadline is not meant for
/// that.
constexpr milliseconds kLongestStart{60'000};

/// What the process is told to do; benchmarks/peers/torch_serve.py has the other end.
enum class Order : std::uint64_t {
  listen = 1,
  join = 2,
  block = 3,
  dispatch = 4,
  touch = 5,
  combine = 6,
  rest = 7,
  poison = 8,
};

/// Words at the start of the shared memory. This rank's and the process's lie on lines of their own.
struct Header {
  std::uint64_t command;  ///< Number of the command << 8 | order
  std::uint64_t port;
  std::uint64_t unused[6];
  std::uint64_t done;  ///< The last command that is done
  std::uint64_t status;
  std::int64_t begin_ns, end_ns;
  std::int64_t rows;
  std::uint64_t own_port;
  std::uint64_t unused_too[2];
  InnerTimes inner;
};
static_assert(offsetof(Header, done) == 64 && offsetof(Header, inner) == 128);
constexpr std::int64_t kHeaderBytes = 4096;
constexpr std::uint64_t kLostPeer = 2;

std::string peers_directory() {
  std::error_code code;
  const fs::path program = fs::read_symlink("/proc/self/exe", code);
  const fs::path beside = program.parent_path().parent_path() / "share/shunt/peers";
  for (const fs::path& candidate : {beside, fs::path(SHUNT_SOURCE_PEERS), fs::path(SHUNT_INSTALLED_PEERS)})
    if (fs::exists(candidate / "torch_alltoall.py", code)) return candidate.string();
  return {};
}

struct TorchPython {
  std::string program;
  std::string reason;  ///< Why there is none
};

TorchPython look_for_torch() {
  if (peers_directory().empty()) return {{}, "benchmarks/peers/torch_alltoall.py is not installed"};
  const char* const given = std::getenv("SHUNT_PYTHON");
  std::vector<std::string> programs{"/usr/bin/python3", "python3"};
  if (given != nullptr && *given != '\0') programs = {given};
  for (const std::string& program : programs) {
    HelperProcess look(
        {program, "-c", "import importlib.util as u, sys; sys.exit(0 if u.find_spec('torch') else 3)"}, -1);
    if (look.wait(milliseconds(10'000)) && look.status() == 0) return {program, {}};
    look.kill();
  }
  return {{},
          fmt::format("no PyTorch: {} cannot import torch (Debian package python3-torch; SHUNT_PYTHON "
                      "names another Python)",
                      fmt::join(programs, " and "))};
}

/// Looks once for each value of SHUNT_PYTHON.
TorchPython torch_python() {
  static std::mutex mutex;
  static std::map<std::string, TorchPython> found;
  const char* const given = std::getenv("SHUNT_PYTHON");
  const std::lock_guard lock(mutex);
  const auto [at, added] = found.try_emplace(given == nullptr ? "" : given);
  if (added) at->second = look_for_torch();
  return at->second;
}

/// "cpu" or "cuda"; empty where SHUNT_TORCH_DEVICE is something else.
std::string torch_device() {
  const char* const given = std::getenv("SHUNT_TORCH_DEVICE");
  const std::string_view device = given == nullptr || *given == '\0' ? "cpu" : given;
  return device == "cpu" || device == "cuda" ? std::string(device) : std::string();
}

/// Where the arrays lie in the shared memory of a rank and its process.
struct Layout {
  Layout(const Workload& workload, std::int32_t rank) {
    const Point& point = workload.point();
    const std::int64_t tokens = workload.routing(workload.group_of(rank)).num_tokens;
    const auto take = [this](std::int64_t size) {
      return std::exchange(bytes, round_up(bytes + size, 4096));
    };
    x = take(tokens * workload.row_bytes());
    scales = take(tokens * workload.scale_bytes());
    ids = take(tokens * point.top_k * 4);
    weights = take(tokens * point.top_k * 4);
    rows = take(workload.arriving_rows(rank) * workload.row_bytes());
    row_scales = take(workload.arriving_rows(rank) * workload.scale_bytes());
    combined = take(tokens * workload.out_row_bytes());
  }
  std::int64_t bytes = kHeaderBytes;
  std::int64_t x, scales, ids, weights, rows, row_scales, combined;
};

/// Memory that another process can map.
class SharedFile {
 public:
  explicit SharedFile(std::int64_t bytes) : bytes_(static_cast<std::size_t>(bytes)) {
    file_ = memfd_create("shunt-torch", MFD_CLOEXEC);
    void* memory = MAP_FAILED;
    if (file_ >= 0 && ftruncate(file_, bytes) == 0)
      memory = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, file_, 0);
    if (memory == MAP_FAILED) {
      if (file_ >= 0) close(file_);
      throw Error(Errc::out_of_memory,
                  fmt::format("the memory shared with torch, {} bytes, cannot be had", bytes));
    }
    data_ = static_cast<std::byte*>(memory);
  }
  ~SharedFile() {
    munmap(data_, bytes_);
    close(file_);
  }
  SharedFile(const SharedFile&) = delete;
  SharedFile& operator=(const SharedFile&) = delete;
  [[nodiscard]] std::byte* data() const noexcept { return data_; }
  [[nodiscard]] int file() const noexcept { return file_; }

 private:
  std::size_t bytes_;
  int file_ = -1;
  std::byte* data_ = nullptr;
};

class TorchMethod final : public Method {
 public:
  explicit TorchMethod(const MethodContext& context)
      : workload_(context.workload),
        rank_(context.transport.world().rank),
        deadline_(context.settings.deadline),
        layout_(workload_, rank_),
        arriving_(workload_.arriving_rows(rank_)),
        memory_(layout_.bytes) {
    const World& world = context.transport.world();
    Collectives& collectives = *context.memory.collectives;
    const PeerNetwork network = find_peer_network(world, collectives, deadline_);
    fill();
    attempt([&] { start(world, network); });
    if (rank_ == 0) order(Order::listen, start_limit());
    header().port = agree(collectives);
    order(Order::join, start_limit());
    agree(collectives);
  }

  void dispatch() override { phase(Order::dispatch); }
  void touch() override { phase(Order::touch); }
  void combine() override {
    phase(Order::combine);
    if (failure_.text.empty()) inner_ = header().inner;
  }

  [[nodiscard]] ArrivedRows arrived() const override {
    ArrivedRows found;
    const std::int64_t rows = std::clamp<std::int64_t>(header().rows, 0, arriving_);
    for (std::int64_t row = 0; row < rows; ++row) {
      found.rows.push_back(at(layout_.rows + row * workload_.row_bytes()));
      if (workload_.num_scales() > 0)
        found.scales.push_back(
            reinterpret_cast<const float*>(at(layout_.row_scales + row * workload_.scale_bytes())));
    }
    return found;
  }
  [[nodiscard]] const std::byte* combined() const override { return at(layout_.combined); }
  [[nodiscard]] std::span<std::byte> own_tokens() override {
    return {at(layout_.x), static_cast<std::size_t>(tokens() * workload_.row_bytes())};
  }
  [[nodiscard]] Span own_span() const noexcept override { return span_; }
  [[nodiscard]] Failure failure() const override { return failure_; }

  void begin_block() override { order(Order::block, wait_limit()); }
  void end_block() override { order(Order::rest, wait_limit()); }

  void poison() override {
    order(Order::poison, wait_limit());
    std::memset(at(layout_.rows), 0xff, static_cast<std::size_t>(layout_.bytes - layout_.rows));
    header().rows = 0;
  }

 private:
  [[nodiscard]] std::byte* at(std::int64_t offset) const noexcept { return memory_.data() + offset; }
  [[nodiscard]] Header& header() const noexcept { return *reinterpret_cast<Header*>(memory_.data()); }
  [[nodiscard]] std::int64_t tokens() const {
    return workload_.routing(workload_.group_of(rank_)).num_tokens;
  }
  /// Shorter than the deadline of the ranks who wait meanwhile, longer than that of the processes among
  /// themselves: so the one that hangs is named, and the ranks go on without this method.
  [[nodiscard]] milliseconds wait_limit() const { return deadline_ / 4 * 3; }

  [[nodiscard]] milliseconds start_limit() const { return std::max(deadline_, kLongestStart); }

  void fill() {
    const std::int32_t group = workload_.group_of(rank_);
    const Routing& routing = workload_.routing(group);
    const auto copy = [this](std::int64_t offset, const void* from, std::int64_t bytes) {
      if (bytes > 0) std::memcpy(at(offset), from, static_cast<std::size_t>(bytes));
    };
    if (routing.num_tokens == 0) return;
    copy(layout_.x, workload_.token(group, 0), tokens() * workload_.row_bytes());
    copy(layout_.scales, workload_.token_scales(group, 0), tokens() * workload_.scale_bytes());
    copy(layout_.ids, routing.ids.data(), static_cast<std::int64_t>(routing.ids.size()) * 4);
    copy(layout_.weights, routing.weights.data(), static_cast<std::int64_t>(routing.weights.size()) * 4);
  }

  void start(const World& world, const PeerNetwork& network) {
    const Point& point = workload_.point();
    const double timeout_s = std::max(1.0, static_cast<double>(deadline_.count()) / 2e3);
    const std::string text = fmt::format(
        R"({{"rank":{},"ranks":{},"local_rank":{},"dp_size":{},"device":"{}","experts":{},"topk":{},"hidden":{},)"
        R"("tokens":{},"in_dtype":"{}","out_dtype":"{}","arriving":{},"timeout_s":{},"interface":"{}",)"
        R"("address":"{}","at":{{"x":{},"scales":{},"ids":{},"weights":{},"rows":{},"row_scales":{},)"
        R"("combined":{}}}}})",
        rank_, world.size, world.local_rank, point.dp_size, torch_device(), point.num_experts, point.top_k,
        point.hidden, tokens(), dtype_name(point.in_dtype), dtype_name(point.out_dtype), arriving_, timeout_s,
        network.interface, network.root_address, layout_.x, layout_.scales, layout_.ids, layout_.weights,
        layout_.rows, layout_.row_scales, layout_.combined);
    // -B: no compiled files beside the sources, which an installation may not allow.
    process_ = std::make_unique<HelperProcess>(
        std::vector<std::string>{torch_python().program, "-B", peers_directory() + "/torch_alltoall.py",
                                 "--serve", text},
        memory_.file());
  }

  template <class Call>
  void attempt(const Call& call) {
    try {
      call();
    } catch (const Error& error) {
      failure_.text = fmt::format("rank {}: {}", rank_, error.what());
    }
  }

  /// Collective. Returns the port that rank 0's process listens on.
  /// Errors: Errc::unavailable on every rank where a process of some rank failed.
  std::uint64_t agree(Collectives& collectives) {
    struct Note {
      std::uint64_t port = 0;
      bool by_peer = false;
      char text[kNetworkNoteBytes - 16] = {};
    };
    Note mine{.port = header().own_port, .by_peer = failure_.by_peer};
    failure_.text.copy(mine.text, sizeof mine.text - 1);
    std::vector<Note> all(static_cast<std::size_t>(workload_.point().ranks));
    collectives.allgather(&mine, sizeof mine, all.data(), start_limit() + deadline_);
    const Note* cause = nullptr;
    for (const Note& one : all)
      if (one.text[0] != '\0' && (cause == nullptr || (cause->by_peer && !one.by_peer))) cause = &one;
    if (cause != nullptr) throw Error(Errc::unavailable, cause->text);
    return all[0].port;
  }

  void phase(Order what) {
    span_ = {};
    order(what, wait_limit());
    if (failure_.text.empty()) span_ = {header().begin_ns, header().end_ns};
  }

  static const char* name(Order what) {
    switch (what) {
      case Order::listen:
      case Order::join:
        return "start";
      case Order::dispatch:
        return "dispatch";
      case Order::touch:
        return "touch";
      case Order::combine:
        return "combine";
      default:
        return "the turn between blocks";
    }
  }

  /// Gives an order and waits until it is done; after a failure nothing.
  void order(Order what, milliseconds limit) {
    if (!failure_.text.empty()) return;
    const std::uint64_t command = ++commands_ << 8 | static_cast<std::uint64_t>(what);
    std::atomic_ref(header().command).store(command, std::memory_order_release);
    // Inside a block the process polls.
    if (what < Order::dispatch || what == Order::poison) process_->wake();
    const std::atomic_ref done(header().done);
    const Deadline until = Clock::now() + limit;
    auto pause = std::chrono::microseconds(10);
    for (int n = 0; done.load(std::memory_order_acquire) != command; ++n) {
      // The process works on this rank's core: looking often would take time from what it measures.
      if (n < 8) {
        sched_yield();
        continue;
      }
      const bool ended = process_->ended();
      if (done.load(std::memory_order_acquire) == command) break;
      if (ended) return fail(what, process_->state());
      if (Clock::now() >= until) {
        process_->kill();
        return fail(what, fmt::format("was not done after {} ms", limit.count()));
      }
      std::this_thread::sleep_for(pause);
      pause = std::min(pause * 2, std::chrono::microseconds(200));
    }
    if (header().status == 0) return;
    failure_.by_peer = header().status == kLostPeer;
    process_->wait(milliseconds(1000));
    fail(what, "failed");
  }

  void fail(Order what, const std::string& how) {
    const std::string lines = process_->last_lines();
    failure_.text = fmt::format("rank {}: the torch process {} in {}{}{}", rank_, how, name(what),
                                lines.empty() ? "" : ": ", lines);
    span_ = {};
    inner_.fill(-1);
  }

  const Workload& workload_;
  std::int32_t rank_;
  milliseconds deadline_;
  Layout layout_;
  std::int64_t arriving_;
  SharedFile memory_;
  std::unique_ptr<HelperProcess> process_;
  std::uint64_t commands_ = 0;
  Span span_;
  Failure failure_;
};

}  // namespace

std::string torch_unavailable() {
  if (torch_device().empty())
    return fmt::format("SHUNT_TORCH_DEVICE is \"{}\"; allowed: cpu, cuda", std::getenv("SHUNT_TORCH_DEVICE"));
  return torch_python().reason;
}

SharedSizes torch_sizes(const Workload&) {
  SharedSizes sizes;
  sizes.collective = kNetworkNoteBytes;
  return sizes;
}

std::int64_t torch_bytes(const Workload& workload, const MethodSettings&) {
  constexpr std::int64_t kPyTorch = std::int64_t{200} << 20;
  const Point& point = workload.point();
  const std::int64_t in = workload.row_bytes() + workload.scale_bytes();
  const std::int64_t out = workload.out_row_bytes();
  const std::int64_t arriving = workload.max_arriving_rows();
  // Shared with the process and its own: packed, received and ordered rows, results both ways, the sum's parts.
  return kPyTorch + arriving * (2 * in + out * (1 + point.dp_size)) +
         point.tokens * (in + 2 * out + point.top_k * (in + 2 * out + 4 * point.hidden));
}

std::unique_ptr<Method> make_torch_method(const MethodContext& context) {
  return std::make_unique<TorchMethod>(context);
}

}  // namespace shunt::bench
