#include <shunt/alltoall/all_to_all.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <optional>
#include <utility>

#include <fmt/format.h>

#include <shunt/core/error.h>

#include "compare.h"
#include "guarded.h"
#include "impl.h"

namespace shunt {
AllToAll::Impl::Impl(Transport& transport_in, const AllToAllConfig& config_in)
    : transport(transport_in),
      config(config_in),
      world(transport_in.world()),
      kernels(pack_kernels()),
      buffer(transport_in) {
  live.assign(at(world.size), 1);
  if (transport.capabilities().device_memory) {
    throw Error(Errc::unavailable,
                fmt::format("AllToAll moves rows with the CPU, but memory of transport {} lies on a GPU; "
                            "shunt::cuda::AllToAll takes that transport, this one its host()",
                            transport.name()));
  }
  compare_configs();
  find_homes();
  if (config.on_peer_loss == PeerLoss::mask) {
    membership = make_membership(transport);
    old_out.resize(at(config.max_tokens * config.hidden * dtype_bytes(config.out_dtype)));
  }
  partition = {config.num_experts, world.size};
  slots = slot_layout(config, world.size);
  num_groups = world.size / config.dp_size;
  group = world.rank / config.dp_size;
  local_experts = partition.count(world.rank);
  plan_and_allocate();
  if (config.delivery == Delivery::rows && config.movement == Movement::automatic) choose_moves();
}

void AllToAll::Impl::plan_and_allocate() {
  count_members();
  crossings = Crossings(homes, world.size, config.path, live);
  plan = plan_buffers(config, world.size, crossings);
  max_rows = rank_max_rows(config, plan.max_arriving, world.size, world.rank);
  allocate_buffer();
  allocate_state();
}

void AllToAll::Impl::count_members() {
  members = 0;
  for (std::int32_t rank = group * config.dp_size; rank < (group + 1) * config.dp_size; ++rank) {
    if (rank == world.rank) member = members;
    members += lives(rank) ? 1 : 0;
  }
}

/// Which ranks reach each other's memory: all, those of a node, or none. Every rank must come to the same answer, also
/// where only one of them cannot reach a neighbour.
void AllToAll::Impl::find_homes() {
  std::uint8_t reach = 2;  // all
  if (!transport.capabilities().load_store) {
    SymmetricBuffer probe =
        transport.allocate(kSignalStride, "AllToAll probe", Clock::now() + kSetupDeadline);
    reach = 1;  // the own node's
    for (std::int32_t rank = 0; rank < world.size; ++rank)
      if (world.node_of(rank) == world.node && transport.peer_pointer(probe, rank) == nullptr) reach = 0;
    transport.release(probe);
  }
  std::vector<std::uint8_t> all(at(world.size));
  collectives->allgather(&reach, sizeof reach, all.data(), kSetupDeadline);
  const std::uint8_t least = *std::min_element(all.begin(), all.end());
  for (std::int32_t rank = 0; rank < world.size && least < 2; ++rank)
    homes.push_back(least == 1 ? world.node_of(rank) : rank);
}

void AllToAll::Impl::compare_configs() {
  collectives = transport.make_collectives(
      std::max<std::int64_t>(config_numbers_bytes(),
                             static_cast<std::int64_t>(sizeof(std::int64_t)) * world.size),
      Clock::now() + kSetupDeadline);
  shunt::compare_configs(*collectives, world, config, [this] { check_config(config, world.size); });
}

void AllToAll::Impl::allocate_buffer() {
  try {
    static_cast<SymmetricBuffer&>(buffer) =
        transport.allocate(plan.total_bytes, "AllToAll workspace", Clock::now() + setup_deadline);
  } catch (const Error& error) {
    if (error.code() != Errc::out_of_memory) throw;
    throw Error(
        Errc::out_of_memory,
        fmt::format(
            "{}; max_tokens {}, max_recv_rows {} and the {} layout decide the size: reduce the first or "
            "second{}",
            error.what(), config.max_tokens, config.max_recv_rows,
            config.layout == RowLayout::padded ? "padded" : "packed",
            config.layout == RowLayout::padded ? ", or use the packed layout" : ""));
  }
}

void AllToAll::Impl::allocate_state() {
  const auto size = [](std::int64_t n) { return static_cast<std::size_t>(n); };
  peers.resize(size(world.size));
  for (std::int32_t rank = 0; rank < world.size; ++rank)
    peers[size(rank)] = crossings.crosses(world.rank, rank) ? nullptr : transport.peer_pointer(buffer, rank);

  owner_of.resize(size(config.num_experts));
  local_of.resize(size(config.num_experts));
  for (std::int32_t expert = 0; expert < config.num_experts; ++expert) {
    owner_of[size(expert)] = partition.owner(expert);
    local_of[size(expert)] = expert - partition.first(partition.owner(expert));
  }
  owners.resize(size(config.max_tokens * config.top_k));
  seen.assign(size(config.num_experts), -1);
  for (auto* per_rank : {&selected, &sent, &sent_before, &cursor, &arrived})
    per_rank->assign(size(world.size), 0);
  arrivals.resize(size(world.size));
  allocate_crossings();
  const auto most_terms = size(config.top_k) + (config.presum ? outbound.size() : 0);
  sum_rows.resize(most_terms);
  next_sum_rows.resize(most_terms);
  if (config.presum) sum_weights.resize(most_terms);
  counts.assign(size(local_experts), 0);
  old_counts.assign(size(local_experts), 0);
  starts.assign(size(local_experts) + 1, 0);
  next_row.assign(size(local_experts), 0);
  if (config.counts_by_group) counts_by_group.assign(size(local_experts) * size(num_groups), 0);
  const auto most_positions = size(std::min(plan.max_arriving, max_rows));
  if (crossings.any()) {
    positions = {reinterpret_cast<std::int32_t*>(buffer.local + plan.published_offset), most_positions};
  } else {
    private_positions.resize(most_positions);
    positions = private_positions;
  }
  position_begin.assign(size(world.size) + 1, 0);
  if (config.delivery == Delivery::view) {
    row_pointers.assign(size(max_rows), nullptr);
    if (config.scale != ScaleType::none) scale_pointers.assign(size(max_rows), nullptr);
  }
  // These go on counting where the state is built anew after a loss.
  dispatch_wait_ns.resize(size(world.size), 0);
  combine_wait_ns.resize(size(world.size), 0);
}

void AllToAll::Impl::allocate_crossings() {
  outbound_of.assign(at(world.size), -1);
  return_base.assign(at(world.size), 0);
  landing_index.assign(at(world.size), -1);
  returning.resize(at(world.size));
  inbound.clear();
  outbound.clear();
  if (!crossings.any()) return;
  outbox = Outbox(transport, buffer, plan.staging_offset, plan.staging_bytes);
  inbound = crossings.sources(world.rank);
  std::vector<std::int32_t> destinations = crossings.destinations(world.rank);
  // In rank order, which is the order in which partial sums are added.
  std::sort(destinations.begin(), destinations.end());
  for (const std::int32_t landing : destinations) {
    for (const std::int32_t owner : crossings.covered(landing))
      outbound_of[at(owner)] = static_cast<std::int32_t>(outbound.size());
    outbound.push_back({.landing = landing, .slot = crossings.slot(world.rank, landing)});
  }
  for (std::int32_t source = 0; source < world.size; ++source)
    if (lives(source) && crossings.crosses(source, world.rank))
      landing_index[at(source)] = crossings.slot(source, crossings.landing(source, world.rank));
  row_in_message.resize(at(plan.landing_rows));
  partial_cursor.resize(outbound.size());
  if (!config.presum) return;
  parts.resize(at(plan.landing_entries));
  part_begin.resize(at(plan.landing_rows) + 1);
  part_end.resize(at(plan.landing_rows));
}

void AllToAll::Impl::expect_stage(Stage wanted, const char* call) const {
  if (stage == wanted) return;
  static constexpr std::array kExpected = {"dispatch_send", "dispatch_recv", "combine_send", "combine_recv",
                                           "nothing"};
  const auto at = static_cast<std::size_t>(stage);
  throw Error(Errc::invalid_state,
              stage == Stage::dead
                  ? fmt::format("rank {}: {} on an AllToAll that died in step {}; it may only be destroyed",
                                world.rank, call, epoch)
                  : fmt::format("rank {}: {} out of order; after step {} came so far, {} is next", world.rank,
                                call, epoch, kExpected[at]));
}

std::int64_t AllToAll::Impl::now_ns() const {
  if (!config.record_waits) return 0;
  return std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now().time_since_epoch()).count();
}

std::uint64_t AllToAll::Impl::wait(std::int64_t offset, std::uint64_t value, Deadline until,
                                   std::int32_t peer, Half half) {
  const WaitSite site{half == Half::dispatch ? "dispatch" : "combine", peer};
  // Excluded through another object of this transport; no signal of it can come any more.
  if (transport.excluded(peer))
    throw Error(
        Errc::peer_lost,
        fmt::format("rank {}: lost rank {} (the transport goes on without it) while waiting for it in {}",
                    world.rank, peer, site.phase));
  if (!config.record_waits) return transport.wait_signal(buffer, offset, value, until, site);
  const std::int64_t begin = now_ns();
  const std::uint64_t seen_word = transport.wait_signal(buffer, offset, value, until, site);
  (half == Half::dispatch ? dispatch_wait_ns : combine_wait_ns)[static_cast<std::size_t>(peer)] +=
      now_ns() - begin;
  return seen_word;
}

void AllToAll::Impl::gather_wait_ns(Half half, View2<std::int64_t> out) {
  if (stage == Stage::dead) expect_stage(Stage::idle, "gather_wait_ns");
  if (out.rows != world.size || out.cols != world.size)
    throw Error(Errc::invalid_argument, fmt::format("gather_wait_ns: out is [{}, {}]; it must be [{}, {}]",
                                                    out.rows, out.cols, world.size, world.size));
  // Those that know of it already are in the same call of theirs with it.
  if (const auto loss = std::exchange(unreported_loss, std::nullopt); loss.has_value())
    throw Error(Errc::peer_masked, fmt::format("{}; the others go on, and steps begin anew", loss->what()));
  const auto& mine = half == Half::dispatch ? dispatch_wait_ns : combine_wait_ns;
  std::vector<std::int64_t> all(mine.size() * mine.size());
  try {
    collectives->allgather(mine.data(), static_cast<std::int64_t>(mine.size() * sizeof(std::int64_t)),
                           all.data(), config.deadline);
  } catch (const Error& error) {
    if (error.code() != Errc::timeout && error.code() != Errc::peer_lost) throw;
    if (membership == nullptr) {
      stage = Stage::dead;
      throw;
    }
    recover(error);
    throw Error(Errc::peer_masked, fmt::format("{}; the others go on, and steps begin anew", error.what()));
  }
  for (std::int64_t row = 0; row < world.size; ++row)
    std::copy_n(all.data() + row * world.size, world.size, out.row(row));
}

AllToAll::AllToAll(Transport& transport, const AllToAllConfig& config)
    : impl_(std::make_unique<Impl>(transport, config)) {}
AllToAll::~AllToAll() = default;

View1<const std::uint8_t> AllToAll::alive() const noexcept {
  return impl_->live;
}

const AllToAllConfig& AllToAll::config() const noexcept {
  return impl_->config;
}

MutableRows AllToAll::token_buffer() noexcept {
  const Impl& s = *impl_;
  return {s.buffer.local + s.plan.token_offset, s.plan.quantise ? 0 : s.config.max_tokens, s.config.hidden,
          s.config.token_dtype};
}

void* AllToAll::token_scales() noexcept {
  const Impl& s = *impl_;
  if (s.plan.quantise || s.config.scale == ScaleType::none) return nullptr;
  return s.buffer.local + s.plan.token_scale_offset;
}

MutableRows AllToAll::expert_output() noexcept {
  const Impl& s = *impl_;
  return {s.buffer.local + s.plan.output_offset, s.max_rows, s.config.hidden, s.config.expert_dtype};
}

Sent<Half::dispatch> AllToAll::dispatch_send(const TokenInput& input, View2<const std::int32_t> expert_ids) {
  impl_->dispatch_send(input, expert_ids);
  return {this, impl_->epoch};
}

Sent<Half::dispatch> AllToAll::dispatch_send(const TokenInput& input, View2<const std::int64_t> expert_ids) {
  impl_->dispatch_send(input, expert_ids);
  return {this, impl_->epoch};
}

Received AllToAll::dispatch_recv(Sent<Half::dispatch>&& sent) {
  impl_->expect_stage(Impl::Stage::dispatch_sent, "dispatch_recv");
  if (sent.owner_ != this || sent.epoch_ != impl_->epoch)
    throw Error(Errc::invalid_state, "dispatch_recv: the receipt is used up or belongs to another AllToAll");
  sent.owner_ = nullptr;
  return impl_->dispatch_recv();
}

Received AllToAll::dispatch_recv(Sent<Half::dispatch>&& sent, MutableRows rows, void* scales) {
  if (impl_->config.delivery == Delivery::view)
    throw Error(Errc::invalid_argument, "dispatch_recv: a view has no rows to copy out; use delivery rows");
  Received received = dispatch_recv(std::move(sent));
  impl_->copy_out(received, rows, scales);
  return received;
}

Sent<Half::combine> AllToAll::combine_send(Rows results) {
  impl_->combine_send(results);
  return {this, impl_->epoch};
}

void AllToAll::combine_recv(Sent<Half::combine>&& sent, View2<const float> weights, MutableRows out,
                            bool accumulate) {
  impl_->expect_stage(Impl::Stage::combine_sent, "combine_recv");
  if (sent.owner_ != this || sent.epoch_ != impl_->epoch)
    throw Error(Errc::invalid_state, "combine_recv: the receipt is used up or belongs to another AllToAll");
  impl_->combine_recv(weights, out, accumulate);
  sent.owner_ = nullptr;
}

std::int64_t AllToAll::max_rows() const noexcept {
  return impl_->max_rows;
}
std::int64_t AllToAll::workspace_bytes() const noexcept {
  return impl_->plan.total_bytes;
}

View1<const std::int64_t> AllToAll::wait_ns(Half half) const noexcept {
  return half == Half::dispatch ? impl_->dispatch_wait_ns : impl_->combine_wait_ns;
}
void AllToAll::gather_wait_ns(Half half, View2<std::int64_t> out) {
  impl_->gather_wait_ns(half, out);
}
const StepTimes& AllToAll::step_times() const noexcept {
  return impl_->times;
}
const ByteCounters& AllToAll::byte_counters() const noexcept {
  return impl_->bytes;
}

}  // namespace shunt
