#include "machine.h"

#include <algorithm>
#include <cstring>
#include <exception>
#include <utility>

#include <fmt/format.h>

#include "context.h"

namespace shunt::emulator {
namespace {

using device::kWarpSize;

std::size_t at(std::int64_t i) {
  return static_cast<std::size_t>(i);
}

const char* op_name(WarpOp op) {
  switch (op) {
    case WarpOp::none:
      return "nothing";
    case WarpOp::sync:
      return "sync_warp";
    case WarpOp::shuffle:
      return "shuffle";
    case WarpOp::shuffle_xor:
      return "shuffle_xor";
    case WarpOp::shuffle_up:
      return "shuffle_up";
    case WarpOp::ballot:
      return "ballot";
    case WarpOp::match_any:
      return "match_any";
  }
  return "?";
}

std::string text_of(Place place) {
  const char* name = std::strrchr(place.file, '/');
  return fmt::format("{}:{}", name == nullptr ? place.file : name + 1, place.line);
}

bool same(Place a, Place b) {
  return a.line == b.line && std::strcmp(a.file, b.file) == 0;
}

/// Which lane's value a lane gets; its own where the other is outside of the warp.
std::int32_t source_lane(WarpOp op, std::int32_t lane, std::int32_t parameter) {
  const std::int32_t source = op == WarpOp::shuffle       ? parameter
                              : op == WarpOp::shuffle_xor ? lane ^ parameter
                                                          : lane - parameter;
  return source < 0 || source >= kWarpSize ? lane : source;
}

std::uint64_t result_of(const Warp& warp, std::int32_t lane) {
  std::uint64_t mask = 0;
  switch (warp.op) {
    case WarpOp::none:
    case WarpOp::sync:
      return 0;
    case WarpOp::shuffle:
    case WarpOp::shuffle_xor:
    case WarpOp::shuffle_up:
      return warp.values[source_lane(warp.op, lane, warp.parameters[lane])];
    case WarpOp::ballot:
      for (std::int32_t i = 0; i < kWarpSize; ++i) mask |= warp.values[i] << static_cast<unsigned>(i);
      return mask;
    case WarpOp::match_any:
      for (std::int32_t i = 0; i < kWarpSize; ++i)
        if (warp.values[i] == warp.values[lane]) mask |= std::uint64_t{1} << static_cast<unsigned>(i);
      return mask;
  }
  return 0;
}

}  // namespace

Machine::Machine(const MachineOptions& options, std::int32_t ranks)
    : options_(options), random_(options.seed, 77), by_priority_(random_.below(2) == 1), queues_(at(ranks)) {}

Machine::~Machine() = default;

void Machine::launch(std::int32_t rank, std::string name, const LaunchShape& shape,
                     std::function<void(Context&)> kernel) {
  if (shape.blocks < 1 || shape.threads < 1 || shape.threads > 1024 || shape.threads % kWarpSize != 0 ||
      shape.shared_bytes < 0)
    throw Fault(fmt::format(
        "{} is launched with {} blocks of {} threads and {} bytes of shared memory; a block has 32 to "
        "1024 threads, a multiple of 32",
        name, shape.blocks, shape.threads, shape.shared_bytes));
  auto grid = std::make_unique<Grid>();
  grid->rank = rank;
  grid->name = std::move(name);
  grid->shape = shape;
  grid->kernel = std::move(kernel);
  // A GPU promises no order among blocks.
  for (std::int32_t i = 0; i < shape.blocks; ++i) grid->order.push_back(i);
  for (std::int32_t i = shape.blocks - 1; i > 0; --i)
    std::swap(grid->order[at(i)], grid->order[random_.below(static_cast<std::uint64_t>(i) + 1)]);
  queues_[at(rank)].push_back(std::move(grid));
}

void Machine::run() {
  for (;;) {
    start_blocks();
    if (blocks_.empty()) return;
    if (runnable_.empty())
      throw Fault("deadlock: every emulated thread waits for another: " + describe_waits());
    step();
  }
}

void Machine::start_blocks() {
  for (auto& queue : queues_) {
    while (!queue.empty() && queue.front()->running == 0 && queue.front()->order.empty()) queue.pop_front();
    if (queue.empty()) continue;
    Grid& grid = *queue.front();
    while (grid.running < options_.processors && !grid.order.empty()) start_block(grid);
  }
}

void Machine::start_block(Grid& grid) {
  auto block = std::make_unique<Block>();
  block->grid = &grid;
  block->index = grid.order.back();
  grid.order.pop_back();
  ++grid.running;
  // Filled with what nobody would take for a number.
  block->shared.assign(at(grid.shape.shared_bytes + 15), std::byte{0xcd});
  block->shared_state.resize(at((grid.shape.shared_bytes + 3) / 4));
  block->warps.resize(at(grid.shape.threads / kWarpSize));
  for (std::int32_t i = 0; i < grid.shape.threads; ++i) {
    auto thread = std::make_unique<Thread>();
    if (stacks_.empty()) stacks_.push_back(std::make_unique<FiberStack>());
    thread->stack = std::move(stacks_.back());
    stacks_.pop_back();
    thread->machine = this;
    thread->block = block.get();
    thread->index = i;
    thread->priority = random_.next_u32();
    thread->fiber.prepare(*thread->stack, &Machine::enter, thread.get());
    runnable_.push_back(thread.get());
    block->threads.push_back(std::move(thread));
  }
  blocks_.push_back(std::move(block));
}

void Machine::enter(void* argument) {
  auto& thread = *static_cast<Thread*>(argument);
  // What a kernel throws must not leave the fiber's stack.
  try {
    Context context(*thread.machine, thread);
    thread.block->grid->kernel(context);
  } catch (const std::exception& error) {
    if (thread.machine->fault_.empty()) thread.machine->fault_ = error.what();
  }
}

Thread& Machine::pick() {
  auto choose = [&] { return random_.next_u32() % static_cast<std::uint32_t>(runnable_.size()); };
  std::size_t chosen = choose();
  if (by_priority_ && random_.next_u32() % 16 != 0) {
    // The best of four: some threads run far ahead of the others, until their luck changes. Not always, or one that waits
    // in a loop could keep the one it waits for from running.
    for (int i = 0; i < 3; ++i) {
      const std::size_t other = choose();
      if (runnable_[other]->priority > runnable_[chosen]->priority) chosen = other;
    }
    if (random_.next_u32() % 64 == 0) runnable_[chosen]->priority = random_.next_u32();
  }
  Thread& thread = *runnable_[chosen];
  runnable_[chosen] = runnable_.back();
  runnable_.pop_back();
  return thread;
}

void Machine::step() {
  Thread& thread = pick();
  now_ns_ += options_.step_ns;
  ++steps_;
  thread.fiber.resume();
  if (!fault_.empty()) throw Fault(fault_);
  if (thread.fiber.ended()) {
    idle_steps_ = 0;
    after_end(thread);
    return;
  }
  if (!thread.waiting) runnable_.push_back(&thread);
  if (++idle_steps_ > options_.max_idle_steps)
    throw Fault(fmt::format("no emulated thread has ended in {} steps, so one waits for ever; {} runs. {}",
                            options_.max_idle_steps, name_of(thread), describe_waits()));
}

void Machine::after_end(Thread& thread) {
  Block& block = *thread.block;
  Warp& warp = block.warps[at(thread.index / kWarpSize)];
  ++warp.ended;
  ++block.ended;
  if (warp.arrived > 0)
    throw Fault(fmt::format("{} has ended, but other lanes of its warp wait for it in {} at {}",
                            name_of(thread), op_name(warp.op), text_of(warp.place)));
  if (block.arrived > 0)
    throw Fault(fmt::format("{} has ended, but other threads of its block wait for it in sync_block at {}",
                            name_of(thread), text_of(block.place)));
  if (block.ended == block.grid->shape.threads) retire(block);
}

void Machine::retire(const Block& block) {
  --block.grid->running;
  for (const auto& thread : block.threads) stacks_.push_back(std::move(thread->stack));
  const auto found =
      std::find_if(blocks_.begin(), blocks_.end(), [&](const auto& b) { return b.get() == &block; });
  blocks_.erase(found);
}

void Machine::wake(Thread& thread) {
  thread.waiting = false;
  runnable_.push_back(&thread);
}

std::string Machine::describe_waits() const {
  std::string text;
  for (const auto& block : blocks_) {
    const std::string where =
        fmt::format("{} of rank {}, block {}", block->grid->name, block->grid->rank, block->index);
    if (block->arrived > 0)
      text += fmt::format("{}: {} of {} threads in sync_block at {}; ", where, block->arrived,
                          block->grid->shape.threads, text_of(block->place));
    for (std::size_t w = 0; w < block->warps.size(); ++w)
      if (block->warps[w].arrived > 0)
        text += fmt::format("{}, warp {}: {} of 32 lanes in {} at {}; ", where, w, block->warps[w].arrived,
                            op_name(block->warps[w].op), text_of(block->warps[w].place));
    if (text.size() > 1000) return text + "and more";
  }
  return text.empty() ? "no thread waits in a barrier" : text;
}

void Machine::give_way(Thread& thread, std::uint32_t one_in) {
  if (one_in > 1 && random_.next_u32() % one_in != 0) return;
  thread.fiber.suspend();
}

void Machine::wait(Thread& thread) {
  thread.waiting = true;
  thread.fiber.suspend();
}

void Machine::barrier(Thread& thread, Place place) {
  Block& block = *thread.block;
  if (block.ended > 0)
    throw Fault(fmt::format("{} waits in sync_block at {}, but {} threads of its block have ended",
                            name_of(thread), text_of(place), block.ended));
  if (block.arrived == 0) block.place = place;
  if (!same(block.place, place))
    throw Fault(fmt::format("{} is in sync_block at {}, other threads of its block are in the one at {}",
                            name_of(thread), text_of(place), text_of(block.place)));
  if (++block.arrived < block.grid->shape.threads) return wait(thread);
  block.arrived = 0;
  ++block.barriers;
  for (const auto& other : block.threads)
    if (other.get() != &thread) wake(*other);
  give_way(thread, 2);
}

std::uint64_t Machine::warp_operation(Thread& thread, WarpOp op, std::uint64_t value, std::int32_t parameter,
                                      Place place) {
  Block& block = *thread.block;
  const std::int32_t lane = thread.index % kWarpSize;
  Warp& warp = block.warps[at(thread.index / kWarpSize)];
  if (warp.ended > 0)
    throw Fault(fmt::format("{} waits in {} at {}, but {} lanes of its warp have ended", name_of(thread),
                            op_name(op), text_of(place), warp.ended));
  if (warp.arrived == 0) {
    warp.op = op;
    warp.place = place;
  }
  if (warp.op != op || !same(warp.place, place))
    throw Fault(fmt::format("{} is in {} at {}, other lanes of its warp are in {} at {}", name_of(thread),
                            op_name(op), text_of(place), op_name(warp.op), text_of(warp.place)));
  warp.values[lane] = value;
  warp.parameters[lane] = parameter;
  if (++warp.arrived < kWarpSize) {
    wait(thread);
    return thread.result;
  }
  // The last lane to arrive hands out all results: a lane may be in the next operation before another has left this one.
  const std::int32_t first = thread.index - lane;
  for (std::int32_t i = 0; i < kWarpSize; ++i) {
    Thread& other = *block.threads[at(first + i)];
    other.result = result_of(warp, i);
    if (&other != &thread) wake(other);
  }
  warp.arrived = 0;
  if (op == WarpOp::sync) ++warp.syncs;  // the others exchange registers and order no memory
  const std::uint64_t result = thread.result;
  give_way(thread, 2);
  return result;
}

std::byte* Machine::access_shared(Thread& thread, const SharedSpan& span, std::int64_t i, bool writes,
                                  Place place) {
  Block& block = *thread.block;
  const std::int64_t begin = span.offset + i * span.element_bytes;
  if (i < 0 || i >= span.count || span.offset < 0 ||
      begin + span.element_bytes > block.grid->shape.shared_bytes || span.offset % span.element_bytes != 0)
    throw Fault(fmt::format(
        "{} {} element {} at {}, of {} elements of {} bytes at offset {}, where the launch has {} "
        "bytes of shared memory",
        name_of(thread), writes ? "writes" : "reads", i, text_of(place), span.count, span.element_bytes,
        span.offset, block.grid->shape.shared_bytes));
  give_way(thread, 32);
  const std::int32_t warp = thread.index / kWarpSize;
  const std::uint32_t sync = block.warps[at(warp)].syncs;
  using Readers = SharedState::Readers;
  // Whether an access by `other` happened before this one by way of a barrier or an operation of the warp.
  const auto ordered = [&](std::int32_t other, std::uint32_t at_barrier, std::uint32_t at_sync) {
    return other == thread.index || at_barrier != block.barriers ||
           (other / kWarpSize == warp && at_sync != sync);
  };
  const auto race = [&](std::int32_t other, const char* what) {
    throw Fault(fmt::format(
        "{} {} element {} (offset {}) of shared memory at {}, which thread {} {} with no barrier "
        "between them",
        name_of(thread), writes ? "writes" : "reads", i, span.offset, text_of(place), other, what));
  };
  for (std::int64_t word = begin / 4; word < (begin + span.element_bytes) / 4; ++word) {
    SharedState& state = block.shared_state[at(word)];
    const bool written = state.writer != SharedState::kNobody;
    if (written && !ordered(state.writer, state.write_barrier, state.write_sync))
      race(state.writer, "has written");
    const bool read_now = state.readers != Readers::none && state.read_barrier == block.barriers;
    if (writes) {
      const bool any = read_now && state.readers == Readers::any;
      const bool one = read_now && state.readers == Readers::one &&
                       !ordered(state.reader, state.read_barrier, state.read_sync);
      const bool of_a_warp = read_now && state.readers == Readers::of_a_warp &&
                             (state.reader / kWarpSize != warp || state.read_sync == sync);
      if (any || one || of_a_warp) race(state.reader, "has read");
      state.writer = thread.index;
      state.write_barrier = block.barriers;
      state.write_sync = sync;
      state.readers = Readers::none;
      continue;
    }
    if (!written)
      throw Fault(
          fmt::format("{} reads element {} (offset {}) of shared memory at {}, which nobody has written",
                      name_of(thread), i, span.offset, text_of(place)));
    Readers readers = Readers::one;
    if (read_now && !ordered(state.reader, state.read_barrier, state.read_sync))
      readers = state.reader / kWarpSize == warp && state.readers != Readers::any ? Readers::of_a_warp
                                                                                  : Readers::any;
    else if (read_now && (state.readers == Readers::any ||
                          (state.readers == Readers::of_a_warp && state.read_sync == sync)))
      readers = state.readers;
    state.readers = readers;
    state.reader = thread.index;
    state.read_barrier = block.barriers;
    state.read_sync = sync;
  }
  auto* base = block.shared.data();
  base += (16 - reinterpret_cast<std::uintptr_t>(base) % 16) % 16;
  return base + begin;
}

std::string Machine::name_of(const Thread& thread) const {
  const Block& block = *thread.block;
  return fmt::format("{}, rank {}, block {}, thread {}", block.grid->name, block.grid->rank, block.index,
                     thread.index);
}

}  // namespace shunt::emulator
