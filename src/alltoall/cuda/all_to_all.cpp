// The host's part of AllToAll on GPUs: set-up, the order of calls, and what kernels have found. Kernels are launched by an
// engine, so all of this also runs in the tests on the emulator.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <optional>
#include <utility>
#include <vector>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <shunt/alltoall/cuda.h>
#include <shunt/core/error.h>
#include <shunt/transport/collectives.h>
#include <shunt/transport/membership.h>
#include <shunt/transport/transport.h>

#include "../compare.h"
#include "../plan.h"
#include "engine.h"
#include "places.h"

namespace shunt::cuda {
namespace {

std::size_t at(std::int64_t i) {
  return static_cast<std::size_t>(i);
}

enum class Stage : std::uint8_t { idle, dispatch_sent, dispatched, combine_sent, dead };

/// Symmetric memory that is given back.
class Workspace {
 public:
  explicit Workspace(Transport& transport) : transport_(&transport) {}
  Workspace(Transport& transport, const SymmetricBuffer& buffer) : transport_(&transport), buffer_(buffer) {}
  Workspace(Workspace&& other) noexcept
      : transport_(other.transport_), buffer_(std::exchange(other.buffer_, {})) {}
  Workspace& operator=(Workspace&& other) noexcept {
    std::swap(buffer_, other.buffer_);
    return *this;
  }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  ~Workspace() {
    if (buffer_.id >= 0) transport_->release(buffer_);
  }
  [[nodiscard]] const SymmetricBuffer& get() const { return buffer_; }

 private:
  Transport* transport_;
  SymmetricBuffer buffer_;
};

}  // namespace

struct AllToAll::Impl {
  Impl(Transport& transport_in, const AllToAllConfig& config_in, const AllToAllOptions& options_in,
       std::unique_ptr<detail::Engine> engine_in);

  void allocate(std::chrono::milliseconds deadline);
  void connect(std::chrono::milliseconds deadline);
  void check_reach(std::span<std::byte* const> peers, std::chrono::milliseconds deadline);
  void expect_stage(Stage wanted, const char* call) const;
  void begin_call(Stage wanted, const char* call);
  template <Half half>
  void use(Sent<half>& sent, const AllToAll* owner, const char* call) const;
  /// Adds rank and call to what is said about a launch that failed.
  template <class Body>
  void launch(const char* call, const Body& body) const {
    try {
      body();
    } catch (const Error& error) {
      throw Error(error.code(), fmt::format("rank {}: {}: {}", transport.world().rank, call, error.what()));
    }
  }
  void check();
  /// What kernels have written there as an error, or nothing.
  [[nodiscard]] std::optional<Error> error_in(detail::Finding& finding) const;
  [[noreturn]] void recover(const Error& loss);
  Agreement agree(const Error& loss);
  [[nodiscard]] DeviceRows rows_at(std::int64_t offset, DType dtype, std::int64_t stride) const {
    return {workspace.get().local + offset, dtype, stride};
  }
  [[nodiscard]] std::int64_t completed() const {
    return base +
           static_cast<std::int64_t>(
               std::atomic_ref<std::uint64_t>(engine->status()->completed).load(std::memory_order_acquire));
  }

  Transport& transport;
  AllToAllConfig config;
  AllToAllOptions options;
  std::unique_ptr<detail::Engine> engine;
  std::unique_ptr<Collectives> collectives;
  std::unique_ptr<Membership> membership;
  Workspace workspace;
  detail::Frame frame;
  std::vector<std::uint8_t> live;
  std::int64_t max_rows = 0;
  std::int64_t base = 0;  ///< Steps completed in memory that is no longer used
  Stage stage = Stage::idle;
  std::uint64_t calls = 0;  ///< Send halves so far, to know receipts by
  std::int64_t num_tokens = 0;
};

AllToAll::Impl::Impl(Transport& transport_in, const AllToAllConfig& config_in,
                     const AllToAllOptions& options_in, std::unique_ptr<detail::Engine> engine_in)
    : transport(transport_in),
      config(config_in),
      options(options_in),
      engine(std::move(engine_in)),
      workspace(transport_in) {
  const World& world = transport.world();
  live.assign(at(world.size), 1);
  collectives = transport.make_collectives(
      std::max<std::int64_t>(config_numbers_bytes(),
                             static_cast<std::int64_t>(sizeof(std::int64_t)) * world.size),
      Clock::now() + kSetupDeadline);
  compare_configs(
      *collectives, world, config,
      [&] {
        check_config(config, world.size);
        detail::check_gpu_config(config, world.size);
        if (options.limit.max_blocks < 0)
          throw Error(
              Errc::invalid_argument,
              fmt::format("AllToAll options: limit.max_blocks is {}; allowed are 0 (no limit) and more",
                          options.limit.max_blocks));
      },
      options.expert_output);
  if (config.on_peer_loss == PeerLoss::mask) membership = make_membership(transport);
  allocate(kSetupDeadline);
}

void AllToAll::Impl::allocate(std::chrono::milliseconds deadline) {
  const World& world = transport.world();
  const detail::Places places =
      detail::plan_places(config, world.size, engine->load_store(), options.expert_output);
  frame = detail::make_frame(config, places, world.size, world.rank);
  frame.members = 0;
  const std::int32_t first = world.rank / config.dp_size * config.dp_size;
  for (std::int32_t rank = first; rank < first + config.dp_size; ++rank) {
    if (rank == world.rank) frame.member = frame.members;
    frame.members += live[at(rank)] != 0 ? 1 : 0;
  }
  max_rows = rank_max_rows(config, places.max_arriving, world.size, world.rank);
  try {
    workspace = Workspace(
        transport, transport.allocate(places.total_bytes, "AllToAll workspace", Clock::now() + deadline));
  } catch (const Error& error) {
    if (error.code() != Errc::out_of_memory) throw;
    throw Error(
        Errc::out_of_memory,
        fmt::format("{}; max_tokens {}, max_recv_rows {}, the layout and expert_output decide the size",
                    error.what(), config.max_tokens, config.max_recv_rows));
  }
  connect(deadline);
  // A rank that comes back from here may launch kernels that wait. On a GPU that ranks share, what the others still load,
  // copy and allocate could stand behind those.
  collectives->barrier(deadline);
}

/// Tables, the net, and what is not 0 at the start.
void AllToAll::Impl::connect(std::chrono::milliseconds deadline) {
  const World& world = transport.world();
  frame.local = workspace.get().local;
  frame.status = engine->status_on_device();
  std::vector<std::byte*> peers(at(world.size), nullptr);
  for (std::int32_t rank = 0; rank < world.size; ++rank)
    if (live[at(rank)] != 0) peers[at(rank)] = transport.peer_pointer(workspace.get(), rank);
  if (engine->load_store()) check_reach(peers, deadline);
  *engine->status() = {};
  detail::State state{};
  state.first_invalid = ~std::uint64_t{0};
  engine->upload(frame.own<std::byte>(frame.at.state_at), &state, sizeof(state));
  engine->upload(frame.own<std::byte>(frame.at.alive_at), live.data(),
                 static_cast<std::int64_t>(live.size()));
  engine->upload(frame.own<std::byte>(frame.at.bases_at), static_cast<const void*>(peers.data()),
                 static_cast<std::int64_t>(peers.size() * sizeof(peers[0])));
  engine->connect(workspace.get(), peers, frame);
}

/// Every rank must come to the same answer, also where only one of them cannot reach a peer.
void AllToAll::Impl::check_reach(std::span<std::byte* const> peers, std::chrono::milliseconds deadline) {
  const World& world = transport.world();
  std::int32_t out_of_reach = -1;
  for (std::int32_t rank = world.size - 1; rank >= 0; --rank)
    if (live[at(rank)] != 0 && peers[at(rank)] == nullptr) out_of_reach = rank;
  std::vector<std::int32_t> all(at(world.size), -1);
  collectives->allgather(&out_of_reach, sizeof(out_of_reach), all.data(), deadline);
  for (std::int32_t rank = 0; rank < world.size; ++rank)
    if (live[at(rank)] != 0 && all[at(rank)] >= 0)
      throw Error(
          Errc::unavailable,
          fmt::format("rank {} cannot load and store the GPU memory of rank {} over transport {}, and "
                      "AllToAll on GPUs has no other way there",
                      rank, all[at(rank)], transport.name()));
}

void AllToAll::Impl::expect_stage(Stage wanted, const char* call) const {
  if (stage == wanted) return;
  static constexpr const char* kExpected[] = {"dispatch_send", "dispatch_recv", "combine_send",
                                              "combine_recv"};
  const std::int32_t rank = transport.world().rank;
  throw Error(
      Errc::invalid_state,
      stage == Stage::dead
          ? fmt::format("rank {}: {} on an AllToAll that is dead; it may only be destroyed", rank, call)
          : fmt::format("rank {}: {} out of order; {} is next", rank, call,
                        kExpected[static_cast<int>(stage)]));
}

void AllToAll::Impl::begin_call(Stage wanted, const char* call) {
  expect_stage(wanted, call);
  check();
}

template <Half half>
void AllToAll::Impl::use(Sent<half>& sent, const AllToAll* owner, const char* call) const {
  if (sent.owner_ != owner || sent.call_ != calls)
    throw Error(Errc::invalid_state,
                fmt::format("rank {}: {}: the receipt is used up or belongs to another AllToAll",
                            transport.world().rank, call));
}

std::optional<Error> AllToAll::Impl::error_in(detail::Finding& finding) const {
  const std::atomic_ref<std::uint32_t> trouble(finding.trouble);
  if (trouble.load(std::memory_order_acquire) == 0) return std::nullopt;
  detail::Finding copy = finding;
  copy.epoch += static_cast<std::uint64_t>(base);
  return detail::error_of(config, transport.world().rank, copy);
}

void AllToAll::Impl::check() {
  detail::Status& status = *engine->status();
  const std::optional<Error> void_step = error_in(status.void_step);
  if (const std::optional<Error> fatal = error_in(status.fatal); fatal.has_value()) {
    // Nothing follows on this memory, so a void step that nobody has asked about is told of here.
    const Error error =
        !void_step.has_value()
            ? *fatal
            : Error(fatal->code(),
                    fmt::format("{}; and not asked about before: {}", fatal->what(), void_step->what()),
                    fatal->peer());
    const bool lost = static_cast<detail::Trouble>(status.fatal.trouble) != detail::Trouble::other_replicas;
    if (lost && membership != nullptr && stage != Stage::dead) recover(error);
    stage = Stage::dead;
    throw error;
  }
  if (void_step.has_value()) {
    // Kernels may report the next one.
    std::atomic_ref(status.void_step.trouble).store(0, std::memory_order_release);
    throw *void_step;
  }
  if (membership != nullptr && stage != Stage::dead && membership->requested())
    recover(Error(Errc::peer_lost, fmt::format("rank {}: another rank has lost one and asks who is left",
                                               transport.world().rank)));
}

Agreement AllToAll::Impl::agree(const Error& loss) {
  const std::int32_t suspect = loss.peer() == transport.world().rank ? -1 : loss.peer();
  try {
    return membership->agree(suspect >= 0 ? std::span(&suspect, 1) : std::span<const std::int32_t>(),
                             completed(), config.deadline);
  } catch (const Error& error) {
    // Where the others went on without this rank, what it was doing meanwhile says why.
    throw Error(error.code(), fmt::format("{}; before: {}", error.what(), loss.what()), error.peer());
  }
}

/// As on the CPU (mask.cpp): agree, leave the lost ranks out, move to memory that they do not know.
void AllToAll::Impl::recover(const Error& loss) {
  // Dead unless everything below succeeds: what throws here may leave ranks with different memory.
  stage = Stage::dead;
  // A kernel that waits ends at its deadline, and those behind it, which could wait as long, do nothing then.
  try {
    engine->wait_idle(2 * config.deadline);
  } catch (const Error& error) {
    throw Error(error.code(), fmt::format("{}; then {}", loss.what(), error.what()), loss.peer());
  }
  const auto deadline = std::min<std::chrono::milliseconds>(kSetupDeadline, 2 * config.deadline);
  Error last = loss;
  std::int64_t highest = completed();
  while (true) {
    const Agreement agreement = agree(last);
    for (const std::int32_t rank : agreement.lost) live[at(rank)] = 0;
    highest = std::max(highest, agreement.highest);
    try {
      collectives = transport.make_collectives(
          static_cast<std::int64_t>(sizeof(std::int64_t)) * transport.world().size, Clock::now() + deadline);
      allocate(deadline);
      break;
    } catch (const Error& error) {
      if (error.code() != Errc::timeout && error.code() != Errc::peer_lost) throw;
      last = error;
    }
  }
  base = highest;
  stage = Stage::idle;
  std::vector<std::int32_t> lost;
  for (std::int32_t rank = 0; rank < transport.world().size; ++rank)
    if (live[at(rank)] == 0) lost.push_back(rank);
  throw Error(
      Errc::peer_masked,
      fmt::format("{}; steps up to {} stand, step {} is to be repeated from dispatch_send, {} ({} of {} "
                  "ranks go on)",
                  loss.what(), highest, highest + 1,
                  lost.empty()
                      ? std::string("and nobody is lost")
                      : fmt::format("without rank{} {}", lost.size() == 1 ? "" : "s", fmt::join(lost, ", ")),
                  live.size() - lost.size(), live.size()));
}

AllToAll::AllToAll(Transport& transport, const AllToAllConfig& config, const AllToAllOptions& options)
    : AllToAll(transport, config, options, detail::make_engine(transport)) {}

AllToAll::AllToAll(Transport& transport, const AllToAllConfig& config, const AllToAllOptions& options,
                   std::unique_ptr<detail::Engine> engine)
    : impl_(std::make_unique<Impl>(transport, config, options, std::move(engine))) {}

AllToAll::~AllToAll() = default;

const AllToAllConfig& AllToAll::config() const noexcept {
  return impl_->config;
}

DeviceRows AllToAll::token_buffer() const noexcept {
  const Impl& s = *impl_;
  // Scales travel behind their row and shares of a group begin anywhere: those are always copied.
  if (s.engine->load_store() || s.config.payload != s.config.token_dtype ||
      s.config.scale != ScaleType::none || s.config.dp_size != 1)
    return {nullptr, s.config.token_dtype, s.config.hidden * dtype_bytes(s.config.token_dtype)};
  return s.rows_at(s.frame.at.staging_at, s.config.token_dtype, s.frame.at.slot_stride);
}

Sent<Half::dispatch> AllToAll::dispatch_send(const TokenInput& input, const ExpertIds& ids, Stream stream) {
  Impl& s = *impl_;
  s.begin_call(Stage::idle, "dispatch_send");
  detail::check_tokens(s.config, s.transport.world().rank, input, ids);
  s.launch("dispatch_send", [&] { s.engine->dispatch_send(s.frame, {input, ids, s.options.limit}, stream); });
  s.num_tokens = input.num_tokens;
  s.stage = Stage::dispatch_sent;
  return {this, ++s.calls};
}

Received AllToAll::dispatch_recv(Sent<Half::dispatch>&& sent, Stream stream) {
  Impl& s = *impl_;
  s.begin_call(Stage::dispatch_sent, "dispatch_recv");
  s.use(sent, this, "dispatch_recv");
  s.launch("dispatch_recv", [&] { s.engine->dispatch_recv(s.frame, {s.options.limit}, stream); });
  sent.owner_ = nullptr;
  s.stage = Stage::dispatched;
  return received();
}

Received AllToAll::received() const noexcept {
  const Impl& s = *impl_;
  const detail::Frame& f = s.frame;
  Received r;
  const bool view = s.config.delivery == Delivery::view;
  r.rows = {view ? nullptr : f.local + f.at.rows_at, s.config.payload, f.at.row_stride};
  if (!view && s.config.scale != ScaleType::none) r.scales = f.local + f.at.scales_at;
  if (view) r.row_pointers = f.own<const void* const>(f.at.row_pointers_at);
  if (view && s.config.scale != ScaleType::none)
    r.scale_pointers = f.own<const void* const>(f.at.scale_pointers_at);
  r.counts = f.own<const std::int32_t>(f.at.counts_out_at);
  r.starts = f.own<const std::int32_t>(f.at.starts_out_at);
  if (s.config.counts_by_group) r.counts_by_group = f.own<const std::int32_t>(f.at.by_group_at);
  r.num_rows = &f.state().num_rows;
  r.max_rows = s.max_rows;
  return r;
}

DeviceRows AllToAll::expert_output() const noexcept {
  const Impl& s = *impl_;
  DeviceRows rows = s.rows_at(s.frame.at.output_at, s.config.expert_dtype, s.frame.at.result_stride);
  if (!s.options.expert_output && s.engine->load_store()) rows.data = nullptr;
  return rows;
}

Sent<Half::combine> AllToAll::combine_send(const DeviceRows& results, Stream stream) {
  Impl& s = *impl_;
  s.begin_call(Stage::dispatched, "combine_send");
  detail::check_results(s.config, s.transport.world().rank, results, s.max_rows > 0);
  s.launch("combine_send", [&] { s.engine->combine_send(s.frame, {results, s.options.limit}, stream); });
  s.stage = Stage::combine_sent;
  return {this, ++s.calls};
}

void AllToAll::combine_recv(Sent<Half::combine>&& sent, const Weights& weights, const DeviceRows& out,
                            Stream stream, bool accumulate) {
  Impl& s = *impl_;
  s.begin_call(Stage::combine_sent, "combine_recv");
  s.use(sent, this, "combine_recv");
  detail::check_sum(s.config, s.transport.world().rank, weights, out, s.num_tokens, accumulate);
  s.launch("combine_recv", [&] {
    s.engine->combine_recv(s.frame, {weights, out, s.num_tokens, accumulate, s.options.limit}, stream);
  });
  sent.owner_ = nullptr;
  s.stage = Stage::idle;
}

void AllToAll::check() {
  impl_->check();
}

std::int64_t AllToAll::steps_completed() const noexcept {
  return impl_->completed();
}

View1<const std::uint8_t> AllToAll::alive() const noexcept {
  return impl_->live;
}

std::int64_t AllToAll::max_rows() const noexcept {
  return impl_->max_rows;
}

std::int64_t AllToAll::workspace_bytes() const noexcept {
  return impl_->frame.at.total_bytes;
}

}  // namespace shunt::cuda
