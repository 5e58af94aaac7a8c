#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include <nanobind/nanobind.h>

#include <shunt/transport/collectives.h>
#include <shunt/transport/launch.h>
#include <shunt/transport/transport.h>

namespace shunt::python {

class Parked;

/// An object whose memory belongs to a world and must be gone before it.
class Dependent {
 public:
  virtual ~Dependent() = default;
  virtual void let_go() noexcept = 0;
};

/// One rank's part in a world, shared by the Python object, its AllToAlls and the arrays that show their memory.
/// Threads: call() keeps calls apart; everything else runs with the GIL.
class WorldState {
 public:
  /// For a transport that lives during the call of a body; end() comes before the body returns.
  explicit WorldState(Transport& transport);
  /// For a world that stays until nobody holds this any more.
  explicit WorldState(std::unique_ptr<Parked> parked);
  ~WorldState();
  WorldState(const WorldState&) = delete;
  WorldState& operator=(const WorldState&) = delete;

  /// Runs f(transport) without the GIL, so that other Python threads go on while this one waits.
  /// Errors: Errc::invalid_state where the world has ended, where this process was forked from the one that is the
  ///         rank, and where another thread is in a call.
  template <class F>
  decltype(auto) call(F&& f) {
    check_usable();
    const nanobind::gil_scoped_release release;
    const std::unique_lock one_at_a_time(mutex_, std::try_to_lock);
    if (!one_at_a_time) refuse_overlap();
    // end() may have come between the check and the lock.
    if (transport_ == nullptr) refuse_ended();
    return f(*transport_);
  }
  void check_usable() const;

  /// From now on end() ends `one`. During a call, so that no end() comes between the making of `one` and this.
  void add(const std::weak_ptr<Dependent>& one);
  /// Ends what still uses the transport. For a borrowed transport: also the world.
  void end() noexcept;
  /// Once nobody holds this any more, its peers learn that it failed; until then they wait, as its memory stays. Does
  /// nothing for a transport that lives during a call: there the body throws.
  void fail(Errc code, const std::string& message);
  /// No more calls; everything stays where it is.
  void close() noexcept { closed_ = true; }
  [[nodiscard]] bool ended() const noexcept { return closed_ || transport_ == nullptr; }
  /// False in a process that was forked from the rank: what it would release belongs to the rank.
  [[nodiscard]] bool in_own_process() const noexcept;
  /// Runs f while no call is under way; for destructors, which may hold the GIL.
  template <class F>
  void exclusively(F&& f) noexcept {
    std::unique_lock lock(mutex_, std::try_to_lock);
    if (!lock) {
      const nanobind::gil_scoped_release release;
      lock.lock();
    }
    f();
  }

  [[nodiscard]] Transport& transport() const noexcept { return *transport_; }
  [[nodiscard]] const World& world() const noexcept { return world_; }
  [[nodiscard]] const std::string& transport_name() const noexcept { return transport_name_; }
  [[nodiscard]] const std::string& provider() const noexcept { return provider_; }
  /// The GPU whose memory the transport has, or -1.
  [[nodiscard]] int device() const noexcept { return device_; }
  /// Collective at its first call.
  Collectives& collectives(Transport& transport, std::chrono::nanoseconds timeout);
  static constexpr std::int64_t kCollectiveBytes = 256 * 1024;

 private:
  [[noreturn]] void refuse_overlap() const;
  [[noreturn]] void refuse_ended() const;
  void describe();

  std::unique_ptr<Parked> parked_;
  Transport* transport_ = nullptr;
  int device_ = -1;
  World world_;
  std::string transport_name_;
  std::string provider_;
  std::unique_ptr<Collectives> collectives_;
  std::vector<std::weak_ptr<Dependent>> dependents_;
  std::mutex mutex_;
  pid_t process_ = 0;
  bool closed_ = false;
};

/// What Python calls a World. Closing lets go of the state, which lives on as long as arrays show its memory.
struct PyWorld {
  explicit PyWorld(std::shared_ptr<WorldState> state_in)
      : state(std::move(state_in)),
        world(state->world()),
        transport(state->transport_name()),
        provider(state->provider()),
        device(state->device()) {}
  void close() noexcept {
    if (state != nullptr) state->close();
    state.reset();
  }
  /// What a call keeps until it returns: it waits without the GIL, and another thread may close meanwhile.
  /// Errors: Errc::invalid_state where it is closed.
  [[nodiscard]] std::shared_ptr<WorldState> get() const;

  std::shared_ptr<WorldState> state;
  World world;
  std::string transport;
  std::string provider;
  int device;
};

void bind_world(nanobind::module_& module);

}  // namespace shunt::python
