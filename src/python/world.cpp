#include "world.h"

#include <fmt/format.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>
#include <pthread.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstring>
#include <utility>

#include <shunt/core/error.h>

#include "arrays.h"
#include "cuda.h"
#include "errors.h"
#include "parked.h"

namespace nb = nanobind;

namespace shunt::python {

Parked::Parked(Run run) {
  // Signals are for the threads that run Python.
  sigset_t all;
  sigset_t before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  thread_ = std::thread([this, run = std::move(run)] { park(run); });
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return transport_ != nullptr || over_; });
  if (transport_ != nullptr) return;
  lock.unlock();
  thread_.join();
  throw Error(failure_.code, failure_.message);
}

void Parked::park(const Run& run) noexcept {
  RankOutcome outcome;
  try {
    for (const RankOutcome& one : run([this](Transport& transport) {
           std::unique_lock lock(mutex_);
           transport_ = &transport;
           device_ = device_of(transport);
           changed_.notify_all();
           changed_.wait(lock, [this] { return leave_; });
           if (reason_.has_value()) throw Error(*reason_);
           return 0;
         }))
      outcome = one;
  } catch (const Error& error) {
    outcome.code = error.code();
    outcome.message = error.what();
  } catch (const std::exception& error) {
    outcome.message = error.what();
  }
  const std::scoped_lock lock(mutex_);
  failure_ = outcome;
  over_ = true;
  changed_.notify_all();
}

void Parked::fail_with(Errc code, std::string message) {
  const std::scoped_lock lock(mutex_);
  reason_.emplace(code, std::move(message));
}

Parked::~Parked() {
  if (!thread_.joinable()) return;
  {
    const std::scoped_lock lock(mutex_);
    leave_ = true;
    changed_.notify_all();
  }
  thread_.join();
}

WorldState::WorldState(Transport& transport)
    : transport_(&transport), device_(device_of(transport)), process_(getpid()) {
  describe();
}

WorldState::WorldState(std::unique_ptr<Parked> parked)
    : parked_(std::move(parked)),
      transport_(&parked_->transport()),
      device_(parked_->device()),
      process_(getpid()) {
  describe();
}

void WorldState::describe() {
  world_ = transport_->world();
  transport_name_ = transport_->name();
  provider_ = transport_->provider();
}

WorldState::~WorldState() {
  if (in_own_process()) {
    collectives_.reset();
    parked_.reset();
    return;
  }
  // The memory and the thread are the rank's; this process has copies that end with it.
  static_cast<void>(collectives_.release());
  if (parked_ != nullptr) static_cast<void>(parked_.release());
}

bool WorldState::in_own_process() const noexcept {
  return getpid() == process_;
}

void WorldState::check_usable() const {
  if (ended()) refuse_ended();
  if (!in_own_process())
    throw Error(Errc::invalid_state,
                fmt::format("rank {} of {} is process {}, but this is process {}, which was "
                            "forked from it; a rank is one process",
                            world_.rank, world_.size, process_, getpid()));
}

void WorldState::refuse_ended() const {
  throw Error(Errc::invalid_state,
              fmt::format("rank {} of {}: this world has ended", world_.rank, world_.size));
}

void WorldState::refuse_overlap() const {
  throw Error(
      Errc::invalid_state,
      fmt::format("rank {} of {}: another thread is in a call of this world; one call at a time is allowed",
                  world_.rank, world_.size));
}

void WorldState::add(const std::weak_ptr<Dependent>& one) {
  std::erase_if(dependents_, [](const std::weak_ptr<Dependent>& old) { return old.expired(); });
  dependents_.push_back(one);
}

void WorldState::end() noexcept {
  exclusively([this] {
    for (const std::weak_ptr<Dependent>& one : dependents_)
      if (const auto alive = one.lock()) alive->let_go();
    dependents_.clear();
    collectives_.reset();
    transport_ = nullptr;
  });
}

Collectives& WorldState::collectives(Transport& transport, std::chrono::nanoseconds timeout) {
  if (collectives_ == nullptr)
    collectives_ = transport.make_collectives(kCollectiveBytes, Clock::now() + timeout);
  return *collectives_;
}

void WorldState::fail(Errc code, const std::string& message) {
  if (parked_ != nullptr && in_own_process()) parked_->fail_with(code, message);
}

std::shared_ptr<WorldState> PyWorld::get() const {
  if (state == nullptr)
    throw Error(Errc::invalid_state,
                fmt::format("rank {} of {}: this world has been closed", world.rank, world.size));
  return state;
}

namespace {

[[nodiscard]] std::chrono::nanoseconds seconds(double timeout) {
  if (!(timeout > 0 && timeout <= 1e6))
    refuse(fmt::format("timeout is {} s; more than 0 and at most 1000000 are allowed", timeout));
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::duration<double>(timeout));
}

/// Closes it as failed; WorldState::fail says when its peers learn of it.
void fail(PyWorld& world, const std::string& code, const std::string& message) {
  if (world.state != nullptr) world.state->fail(code_of(code), message);
  world.close();
}

void barrier(const PyWorld& world, double timeout) {
  const std::shared_ptr<WorldState> self = world.get();
  const auto limit = seconds(timeout);
  self->call([&](Transport& transport) { self->collectives(transport, limit).barrier(limit); });
}

[[nodiscard]] std::vector<nb::bytes> allgather(const PyWorld& world, const nb::bytes& data, double timeout) {
  const std::shared_ptr<WorldState> self = world.get();
  const auto limit = seconds(timeout);
  const auto ranks = static_cast<std::size_t>(self->world().size);
  const std::size_t bytes = data.size();
  // Sizes may differ, so they go first; then all are as long as the longest, in pieces.
  std::vector<std::int64_t> sizes(ranks);
  std::vector<std::vector<char>> all(ranks);
  const auto mine = static_cast<std::int64_t>(bytes);
  const char* const from = data.c_str();
  self->call([&](Transport& transport) {
    Collectives& collectives = self->collectives(transport, limit);
    collectives.allgather(&mine, sizeof(mine), sizes.data(), limit);
    const std::int64_t longest = *std::max_element(sizes.begin(), sizes.end());
    const std::int64_t step = WorldState::kCollectiveBytes / 2;
    std::vector<char> piece(static_cast<std::size_t>(std::min(step, longest)));
    std::vector<char> pieces(piece.size() * ranks);
    for (std::int64_t at = 0; at < longest; at += step) {
      const std::int64_t part = std::min(step, longest - at);
      if (at < mine)
        std::memcpy(piece.data(), from + at, static_cast<std::size_t>(std::min(part, mine - at)));
      collectives.allgather(piece.data(), part, pieces.data(), limit);
      for (std::size_t rank = 0; rank < ranks; ++rank) {
        const std::int64_t share = std::clamp<std::int64_t>(sizes[rank] - at, 0, part);
        const char* const begin = pieces.data() + static_cast<std::int64_t>(rank) * part;
        all[rank].insert(all[rank].end(), begin, begin + share);
      }
    }
  });
  std::vector<nb::bytes> result;
  result.reserve(ranks);
  for (const std::vector<char>& one : all) result.emplace_back(one.data(), one.size());
  return result;
}

/// Piece r of `send` goes to rank r; both are whole arrays of R equal pieces.
void alltoall(const PyWorld& world, nb::handle send, nb::handle receive, double timeout) {
  const std::shared_ptr<WorldState> self = world.get();
  const auto limit = seconds(timeout);
  const auto ranks = static_cast<std::int64_t>(self->world().size);
  const Given given_send(send, Given::Use::read, "send");
  const Given given_receive(receive, Given::Use::write, "receive");
  const MutableBytes from = dense_bytes(given_send, "send");
  const MutableBytes to = dense_bytes(given_receive, "receive");
  if (from.size != to.size || from.size % ranks != 0)
    refuse(
        fmt::format("rank {}: alltoall: send has {} bytes and receive {}; both must have the same number, a "
                    "multiple of {} ranks",
                    self->world().rank, from.size, to.size, ranks));
  const std::int64_t piece = from.size / ranks;
  self->call([&](Transport& transport) {
    Collectives& collectives = self->collectives(transport, limit);
    const std::int64_t step = std::max<std::int64_t>(1, WorldState::kCollectiveBytes / ranks);
    std::vector<std::byte> out(static_cast<std::size_t>(std::min(step, piece) * ranks));
    std::vector<std::byte> in(out.size());
    for (std::int64_t at = 0; at < piece; at += step) {
      const std::int64_t part = std::min(step, piece - at);
      const auto bytes = static_cast<std::size_t>(part);
      for (std::int64_t rank = 0; rank < ranks; ++rank)
        std::memcpy(out.data() + rank * part, from.data + rank * piece + at, bytes);
      collectives.alltoall(out.data(), part, in.data(), limit);
      for (std::int64_t rank = 0; rank < ranks; ++rank)
        std::memcpy(to.data + rank * piece + at, in.data() + rank * part, bytes);
    }
  });
}

}  // namespace

void bind_world(nb::module_& module) {
  nb::class_<PyWorld>(module, "World")
      .def_prop_ro("rank", [](const PyWorld& self) { return self.world.rank; })
      .def_prop_ro("size", [](const PyWorld& self) { return self.world.size; })
      .def_prop_ro("local_rank", [](const PyWorld& self) { return self.world.local_rank; })
      .def_prop_ro("node", [](const PyWorld& self) { return self.world.node; })
      .def_prop_ro("num_nodes", [](const PyWorld& self) { return self.world.num_nodes(); })
      .def_prop_ro("transport", [](const PyWorld& self) { return self.transport; })
      .def_prop_ro("provider", [](const PyWorld& self) { return self.provider; })
      .def_prop_ro("device",
                   [](const PyWorld& self) {
                     return self.device < 0 ? nb::object(nb::none()) : nb::object(nb::int_(self.device));
                   })
      .def_prop_ro("closed", [](const PyWorld& self) { return self.state == nullptr || self.state->ended(); })
      .def("close", &PyWorld::close)
      .def("fail", &fail, nb::arg("code"), nb::arg("message"))
      .def("barrier", &barrier, nb::arg("timeout"))
      .def("allgather", &allgather, nb::arg("data"), nb::arg("timeout"))
      .def("alltoall", &alltoall, nb::arg("send"), nb::arg("receive"), nb::arg("timeout"));
}

}  // namespace shunt::python
