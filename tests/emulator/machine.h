#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include <shunt/core/random.h>
#include <shunt/device/context.h>

#include "fiber.h"

namespace shunt::emulator {

class Context;
template <class T>
class Shared;
using device::LaunchShape;

/// What a kernel did that no GPU would forgive, in a sentence that names kernel, rank, block and thread.
class Fault : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct MachineOptions {
  std::uint64_t seed = 1;       ///< Of every decision of the scheduler; equal seeds repeat a run exactly
  std::int32_t processors = 4;  ///< Blocks of one rank that run at the same time; the others wait
  std::int64_t max_idle_steps =
      4 << 20;                 ///< Steps without a thread's end after which nothing is moving any more
  std::uint64_t step_ns = 10;  ///< By which the clock advances at each step
};

/// A place in a kernel's source, for messages and for telling divergent threads apart.
struct Place {
  const char* file;
  int line;
};

enum class WarpOp : std::uint8_t { none, sync, shuffle, shuffle_xor, shuffle_up, ballot, match_any };

struct Block;
class Machine;

struct Thread {
  Fiber fiber;
  std::unique_ptr<FiberStack> stack;
  Machine* machine = nullptr;
  Block* block = nullptr;
  std::int32_t index = 0;  ///< In its block
  std::uint32_t priority = 0;
  std::uint64_t result = 0;  ///< Of the last warp operation
  bool waiting = false;      ///< For other threads of its block or warp
};

struct Warp {
  WarpOp op = WarpOp::none;
  Place place{};  ///< Of the first lane that arrived
  std::int32_t arrived = 0;
  std::int32_t ended = 0;
  std::uint32_t syncs = 0;
  std::uint64_t values[device::kWarpSize] = {};
  std::int32_t parameters[device::kWarpSize] = {};
};

/// What is known of four bytes of shared memory: who wrote and read them last, and at which barrier and warp operation.
struct SharedState {
  static constexpr std::int32_t kNobody = -1;
  enum class Readers : std::uint8_t { none, one, of_a_warp, any };
  std::int32_t writer = kNobody;
  std::uint32_t write_barrier = 0;
  std::uint32_t write_sync = 0;
  Readers readers = Readers::none;
  std::int32_t reader = kNobody;
  std::uint32_t read_barrier = 0;
  std::uint32_t read_sync = 0;
};

/// Elements of shared memory that a thread has asked for.
struct SharedSpan {
  std::int32_t offset = 0;  ///< Bytes
  std::int32_t count = 0;
  std::int32_t element_bytes = 4;
};

struct Grid {
  std::int32_t rank = 0;
  std::string name;
  LaunchShape shape;
  std::function<void(Context&)> kernel;
  std::vector<std::int32_t> order;  ///< Blocks that have not started, the next one last
  std::int32_t running = 0;
};

struct Block {
  Grid* grid = nullptr;
  std::int32_t index = 0;
  std::vector<std::unique_ptr<Thread>> threads;
  std::vector<Warp> warps;
  std::vector<std::byte> shared;
  std::vector<SharedState> shared_state;
  std::int32_t arrived = 0;  ///< At the barrier
  Place place{};
  std::int32_t ended = 0;
  std::uint32_t barriers = 0;
};

/// Several GPUs in one thread: launches kernels of every rank and interleaves all their threads at random, seeded.
/// Every thread is a fiber that gives way at barriers, warp operations, atomics and pauses, and now and then at other
/// accesses. Kernels of one rank run in the order in which they were launched, those of different ranks side by side.
/// What it finds: divergent barriers and warp operations, threads that end while others wait for them, deadlock, loops
/// that wait for ever, shared memory outside of what was launched, never written, or raced for, and unaligned 16-byte
/// accesses. What it cannot find: accesses out of bounds of global memory (AddressSanitizer does), races there, and
/// orders that a GPU allows but no interleaving of whole accesses shows.
class Machine {
 public:
  explicit Machine(const MachineOptions& options = {}, std::int32_t ranks = 1);
  ~Machine();
  Machine(const Machine&) = delete;
  Machine& operator=(const Machine&) = delete;

  /// Queues one kernel of `rank`.
  /// Errors: Fault where the shape has no threads or a part of a warp.
  void launch(std::int32_t rank, std::string name, const LaunchShape& shape,
              std::function<void(Context&)> kernel);
  /// Runs until every queued kernel has ended.
  /// Errors: Fault; the machine can only be destroyed then.
  void run();

  [[nodiscard]] std::int32_t processors() const noexcept { return options_.processors; }
  [[nodiscard]] std::uint64_t now_ns() const noexcept { return now_ns_; }
  [[nodiscard]] std::int64_t steps() const noexcept { return steps_; }

 private:
  friend class Context;
  template <class T>
  friend class Shared;
  static void enter(void* thread);
  void start_blocks();
  void start_block(Grid& grid);
  Thread& pick();
  void step();
  void after_end(Thread& thread);
  void retire(const Block& block);
  void wake(Thread& thread);
  [[nodiscard]] std::string describe_waits() const;

  // For threads, through Context.
  void give_way(Thread& thread, std::uint32_t one_in);
  void wait(Thread& thread);
  void barrier(Thread& thread, Place place);
  std::uint64_t warp_operation(Thread& thread, WarpOp op, std::uint64_t value, std::int32_t parameter,
                               Place place);
  std::byte* access_shared(Thread& thread, const SharedSpan& span, std::int64_t i, bool writes, Place place);
  [[nodiscard]] std::string name_of(const Thread& thread) const;

  MachineOptions options_;
  Random random_;
  bool by_priority_ = false;
  std::vector<std::deque<std::unique_ptr<Grid>>> queues_;  ///< [rank], the running one first
  std::vector<std::unique_ptr<Block>> blocks_;             ///< Running
  std::vector<std::unique_ptr<FiberStack>> stacks_;        ///< To be used again
  std::vector<Thread*> runnable_;
  std::string fault_;
  std::uint64_t now_ns_ = 1;
  std::int64_t steps_ = 0;
  std::int64_t idle_steps_ = 0;
};

}  // namespace shunt::emulator
