#include <algorithm>
#include <cstring>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <shunt/core/error.h>

#include "guarded.h"
#include "impl.h"

// Going on without a lost rank: docs/architecture.md, "When a peer is gone".
namespace shunt {

std::int64_t AllToAll::Impl::recover(const Error& loss) {
  // Dead unless everything below succeeds: what throws here may leave ranks with different memory.
  stage = Stage::dead;
  Error last = loss;
  std::int64_t highest = returned;
  while (true) {
    const Agreement agreement = agree(last);
    for (const std::int32_t rank : agreement.lost) live[at(rank)] = 0;
    highest = std::max(highest, agreement.highest);
    try {
      move_to_new_memory();
      break;
    } catch (const Error& error) {
      if (error.code() != Errc::timeout && error.code() != Errc::peer_lost) throw;
      last = error;
    }
  }
  epoch = static_cast<std::uint32_t>(highest);
  void_step = false;
  stage = Stage::idle;
  return highest;
}

Agreement AllToAll::Impl::agree(const Error& loss) {
  const std::int32_t suspect = loss.peer();
  try {
    return membership->agree(suspect >= 0 ? std::span(&suspect, 1) : std::span<const std::int32_t>(),
                             returned, config.deadline);
  } catch (const Error& error) {
    // Where the others went on without this rank, what it was doing meanwhile says why.
    throw Error(error.code(), fmt::format("{}; before: {}", error.what(), loss.what()), error.peer());
  }
}

/// A rank that was only slow may still write to the old memory, so nothing of the next step may lie there.
void AllToAll::Impl::move_to_new_memory() {
  // The survivors are all here, unless one more is lost; that must not take as long as a first start may.
  setup_deadline = std::min<std::chrono::milliseconds>(kSetupDeadline, 2 * config.deadline);
  const BufferPlan old_plan = plan;
  auto old = std::make_unique<Workspace>(transport);
  std::swap(static_cast<SymmetricBuffer&>(*old), static_cast<SymmetricBuffer&>(buffer));
  try {
    collectives = transport.make_collectives(
        std::max<std::int64_t>(static_cast<std::int64_t>(sizeof(std::int64_t)) * world.size, 1),
        Clock::now() + setup_deadline);
    plan_and_allocate();
  } catch (...) {
    // What was allocated goes with `old`; the next try, or the destructor, finds the memory from before.
    std::swap(static_cast<SymmetricBuffer&>(*old), static_cast<SymmetricBuffer&>(buffer));
    plan = old_plan;
    throw;
  }
  if (!plan.quantise) {
    std::memcpy(buffer.local + plan.token_offset, old->local + old_plan.token_offset,
                at(config.max_tokens * plan.row_bytes));
    std::memcpy(buffer.local + plan.token_scale_offset, old->local + old_plan.token_scale_offset,
                at(config.max_tokens * plan.row_scale_bytes));
  }
  old_memory = std::move(old);
}

void AllToAll::Impl::void_and_mask(const Error& loss) {
  const std::uint32_t step = epoch;
  recover(loss);
  throw_masked(loss, step);
}

void AllToAll::Impl::throw_masked(const Error& loss, std::uint32_t step) const {
  std::vector<std::int32_t> lost;
  for (std::int32_t rank = 0; rank < world.size; ++rank)
    if (!lives(rank)) lost.push_back(rank);
  if (lost.empty())
    throw Error(
        Errc::peer_masked,
        fmt::format("{}; step {} is void and may be repeated from dispatch_send: nobody is lost, all {} "
                    "ranks go on",
                    loss.what(), step, world.size));
  throw Error(
      Errc::peer_masked,
      fmt::format(
          "{}; step {} is void and may be repeated from dispatch_send without rank{} {} ({} of {} ranks "
          "go on)",
          loss.what(), step, lost.size() == 1 ? "" : "s", fmt::join(lost, ", "),
          world.size - static_cast<std::int32_t>(lost.size()), world.size));
}

/// Nobody returns from a step before all have everything of it: else some would repeat a step that others have behind
/// them. Where a rank is lost in between, one survivor that has returned is the proof that all are complete.
void AllToAll::Impl::commit_step() {
  try {
    const Deadline until = deadline();
    for (std::int32_t step = 1; step <= world.size; ++step) {
      const std::int32_t peer = (world.rank + step) % world.size;
      if (lives(peer))
        transport.signal(buffer, peer, plan.commit_offset + world.rank * kSignalStride, word(0));
    }
    for (std::int32_t step = 1; step < world.size; ++step) {
      const std::int32_t peer = (world.rank + step) % world.size;
      if (lives(peer)) wait(plan.commit_offset + peer * kSignalStride, word(0), until, peer, Half::combine);
    }
  } catch (const Error& error) {
    if (error.code() != Errc::timeout && error.code() != Errc::peer_lost) throw;
    const std::uint32_t step = epoch;
    if (recover(error) < step) throw_masked(error, step);
    // Whoever had returned already loses the step after this one, and all lose the same.
    unreported_loss = error;
  }
  returned = epoch;
}

}  // namespace shunt
