#include "transport_bench_ops.h"

#include <cstring>

#include <fmt/format.h>

#include <shunt/core/error.h>

#include "transport_bench_payload.h"

namespace shunt::bench {

std::int64_t bench_now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now().time_since_epoch()).count();
}

Pair::Pair(Transport& transport, std::int32_t peer_of_zero, std::int64_t region_bytes,
           std::chrono::milliseconds deadline)
    : transport_(transport), peer_(-1), region_bytes_(region_bytes), deadline_(deadline) {
  const std::int32_t rank = transport.world().rank;
  if (peer_of_zero > 0 && rank == 0) peer_ = peer_of_zero;
  if (peer_of_zero > 0 && rank == peer_of_zero) peer_ = 0;
  // Sources lie in symmetric memory too: networks reach it without copying or registering.
  memory_ = transport.allocate(kWords * kSignalStride + 2 * region_bytes, "the messages of bench transport",
                               this->deadline());
}

void check_messages(const std::byte* at, const Shape& shape, std::uint64_t sequence, std::int32_t sender,
                    std::int32_t receiver, Found& found) {
  for (std::int64_t slot = 0; slot < shape.messages; ++slot, at += shape.bytes) {
    ++found.checked;
    const std::int64_t wrong = first_wrong_byte(
        at, shape.bytes, {.sequence = sequence, .sender = sender, .receiver = receiver, .slot = slot});
    if (wrong < 0) continue;
    if (found.wrong++ > 0) continue;
    found.first = fmt::format("rank {}: byte {} of the {} bytes of message {} from rank {} is wrong",
                              receiver, wrong, shape.bytes, slot, sender);
  }
}

void fill_messages(std::byte* to, const Shape& shape, std::uint64_t sequence, std::int32_t sender,
                   std::int32_t receiver) {
  for (std::int64_t slot = 0; slot < shape.messages; ++slot, to += shape.bytes)
    fill_payload(to, shape.bytes,
                 {.sequence = sequence, .sender = sender, .receiver = receiver, .slot = slot});
}

std::int64_t uneven_piece(std::int64_t piece, std::int32_t from, std::int32_t to) {
  return piece + ((from + 2 * to) % 3 - 1) * (piece / 2);
}

namespace {

class PairExercise : public Exercise {
 public:
  explicit PairExercise(Pair& pair) : pair_(pair) {}
  [[nodiscard]] bool takes_part() const override { return pair_.takes_part(); }
  void meet(std::uint64_t sequence) override { pair_.meet(sequence); }
  void settle() override { pair_.transport().quiet(); }

 protected:
  void fill_outgoing(const Shape& shape, std::uint64_t sequence) {
    fill_messages(pair_.outgoing(), shape, sequence, pair_.rank(), pair_.peer());
  }
  void check_incoming(const Shape& shape, std::uint64_t sequence, Found& found) {
    check_messages(pair_.incoming(), shape, sequence, pair_.peer(), pair_.rank(), found);
  }
  void put_all(const Shape& shape) {
    for (std::int64_t slot = 0; slot < shape.messages; ++slot)
      pair_.transport().put(pair_.memory(), pair_.peer(), pair_.incoming_offset() + slot * shape.bytes,
                            pair_.outgoing() + slot * shape.bytes, shape.bytes);
  }
  Pair& pair_;
};

/// Ping-pong of put_signal, or of signal where there is nothing to put.
class Latency final : public PairExercise {
 public:
  Latency(Pair& pair, bool payload) : PairExercise(pair), payload_(payload) {}
  void fill(const Shape& shape, std::uint64_t sequence) override {
    if (payload_) fill_outgoing(shape, sequence);
  }
  Busy run(const Shape& shape, std::uint64_t sequence) override {
    const Deadline until = pair_.deadline();
    Busy busy{.begin_ns = bench_now_ns()};
    if (pair_.first()) send(shape, sequence);
    pair_.wait(Pair::kData, sequence, until, payload_ ? "put_latency" : "signal_latency");
    if (!pair_.first()) send(shape, sequence);
    busy.end_ns = bench_now_ns();
    return pair_.first() ? busy : Busy{};
  }
  void check(const Shape& shape, std::uint64_t sequence, Found& found) override {
    if (payload_) check_incoming(shape, sequence, found);
  }

 private:
  void send(const Shape& shape, std::uint64_t sequence) {
    if (!payload_) {
      pair_.signal(Pair::kData, sequence);
      return;
    }
    pair_.transport().put_signal(pair_.memory(), pair_.peer(), pair_.incoming_offset(), pair_.outgoing(),
                                 shape.bytes, Pair::kData * kSignalStride, sequence);
  }
  bool payload_;
};

/// A window of puts, a signal behind them, quiet; ends with the receiver's answer.
class Bandwidth final : public PairExercise {
 public:
  using PairExercise::PairExercise;
  void fill(const Shape& shape, std::uint64_t sequence) override {
    if (pair_.first()) fill_outgoing(shape, sequence);
  }
  Busy run(const Shape& shape, std::uint64_t sequence) override {
    const Deadline until = pair_.deadline();
    if (!pair_.first()) {
      pair_.wait(Pair::kData, sequence, until, "put_bandwidth");
      pair_.signal(Pair::kAck, sequence);
      return {};
    }
    Busy busy{.begin_ns = bench_now_ns()};
    put_all(shape);
    pair_.signal(Pair::kData, sequence);
    pair_.transport().quiet();
    pair_.wait(Pair::kAck, sequence, until, "put_bandwidth");
    busy.end_ns = bench_now_ns();
    return busy;
  }
  void check(const Shape& shape, std::uint64_t sequence, Found& found) override {
    if (!pair_.first()) check_incoming(shape, sequence, found);
  }
};

/// The same in both directions at once; each rank ends with the other one's messages.
class Bibandwidth final : public PairExercise {
 public:
  using PairExercise::PairExercise;
  void fill(const Shape& shape, std::uint64_t sequence) override { fill_outgoing(shape, sequence); }
  Busy run(const Shape& shape, std::uint64_t sequence) override {
    const Deadline until = pair_.deadline();
    Busy busy{.begin_ns = bench_now_ns()};
    put_all(shape);
    pair_.signal(Pair::kData, sequence);
    pair_.transport().quiet();
    pair_.wait(Pair::kData, sequence, until, "put_bibandwidth");
    busy.end_ns = bench_now_ns();
    return busy;
  }
  void check(const Shape& shape, std::uint64_t sequence, Found& found) override {
    check_incoming(shape, sequence, found);
  }
};

class Memcpy final : public PairExercise {
 public:
  explicit Memcpy(Pair& pair) : PairExercise(pair) {
    if (!takes_part()) return;
    from_.resize(static_cast<std::size_t>(pair.region_bytes()));
    to_.resize(static_cast<std::size_t>(pair.region_bytes()));
  }
  [[nodiscard]] bool takes_part() const override { return pair_.takes_part() && pair_.first(); }
  void meet(std::uint64_t) override {}
  void settle() override {}
  void fill(const Shape& shape, std::uint64_t sequence) override {
    fill_messages(from_.data(), shape, sequence, 0, 0);
  }
  Busy run(const Shape& shape, std::uint64_t) override {
    Busy busy{.begin_ns = bench_now_ns()};
    for (std::int64_t slot = 0; slot < shape.messages; ++slot)
      std::memcpy(to_.data() + slot * shape.bytes, from_.data() + slot * shape.bytes,
                  static_cast<std::size_t>(shape.bytes));
    // Unchecked copies must happen too.
    asm volatile("" ::"r"(to_.data()) : "memory");
    busy.end_ns = bench_now_ns();
    return busy;
  }
  void check(const Shape& shape, std::uint64_t sequence, Found& found) override {
    check_messages(to_.data(), shape, sequence, 0, 0, found);
  }

 private:
  std::vector<std::byte> from_, to_;
};

/// What the collectives have in common: every rank takes part, and all meet before each iteration.
class CollectiveExercise : public Exercise {
 public:
  CollectiveExercise(Transport& transport, Collectives& control, Collectives& measured,
                     std::chrono::milliseconds deadline)
      : measured_(measured),
        rank_(transport.world().rank),
        size_(transport.world().size),
        deadline_(deadline),
        transport_(transport),
        control_(control) {}
  [[nodiscard]] bool takes_part() const override { return true; }
  void fill(const Shape&, std::uint64_t) override {}
  void meet(std::uint64_t) override { control_.barrier(deadline_); }
  void settle() override { transport_.quiet(); }
  void check(const Shape&, std::uint64_t, Found&) override {}
  Busy run(const Shape& shape, std::uint64_t) override {
    Busy busy{.begin_ns = bench_now_ns()};
    call(shape);
    busy.end_ns = bench_now_ns();
    return busy;
  }

 protected:
  virtual void call(const Shape& shape) = 0;
  Collectives& measured_;
  std::int32_t rank_, size_;
  std::chrono::milliseconds deadline_;

 private:
  Transport& transport_;
  Collectives& control_;
};

class Barrier final : public CollectiveExercise {
 public:
  using CollectiveExercise::CollectiveExercise;

 protected:
  void call(const Shape&) override { measured_.barrier(deadline_); }
};

class Allgather final : public CollectiveExercise {
 public:
  Allgather(Transport& transport, Collectives& control, Collectives& measured, const Shape& largest,
            std::chrono::milliseconds deadline)
      : CollectiveExercise(transport, control, measured, deadline),
        send_(static_cast<std::size_t>(largest.piece)),
        receive_(static_cast<std::size_t>(largest.bytes)) {}
  void fill(const Shape& shape, std::uint64_t sequence) override {
    fill_messages(send_.data(), {.bytes = shape.piece}, sequence, rank_, -1);
  }
  void check(const Shape& shape, std::uint64_t sequence, Found& found) override {
    for (std::int32_t from = 0; from < size_; ++from)
      check_messages(receive_.data() + from * shape.piece, {.bytes = shape.piece}, sequence, from, -1, found);
  }

 protected:
  void call(const Shape& shape) override {
    measured_.allgather(send_.data(), shape.piece, receive_.data(), deadline_);
  }

 private:
  std::vector<std::byte> send_, receive_;
};

class Alltoall final : public CollectiveExercise {
 public:
  Alltoall(Transport& transport, Collectives& control, Collectives& measured, const Shape& largest,
           std::chrono::milliseconds deadline)
      : CollectiveExercise(transport, control, measured, deadline),
        send_(static_cast<std::size_t>(largest.bytes)),
        receive_(static_cast<std::size_t>(largest.bytes)) {}
  void fill(const Shape& shape, std::uint64_t sequence) override {
    for (std::int32_t to = 0; to < size_; ++to)
      fill_messages(send_.data() + to * shape.piece, {.bytes = shape.piece}, sequence, rank_, to);
  }
  void check(const Shape& shape, std::uint64_t sequence, Found& found) override {
    for (std::int32_t from = 0; from < size_; ++from)
      check_messages(receive_.data() + from * shape.piece, {.bytes = shape.piece}, sequence, from, rank_,
                     found);
  }

 protected:
  void call(const Shape& shape) override {
    measured_.alltoall(send_.data(), shape.piece, receive_.data(), deadline_);
  }

 private:
  std::vector<std::byte> send_, receive_;
};

class Alltoallv final : public CollectiveExercise {
 public:
  Alltoallv(Transport& transport, Collectives& control, Collectives& measured, const Shape& largest,
            std::chrono::milliseconds deadline)
      : CollectiveExercise(transport, control, measured, deadline),
        send_offsets_(static_cast<std::size_t>(size_)),
        send_bytes_(send_offsets_),
        receive_offsets_(send_offsets_),
        receive_bytes_(send_offsets_) {
    lay_out(largest.piece);
    receive_.resize(static_cast<std::size_t>(receive_offsets_.back() + receive_bytes_.back()));
  }
  void fill(const Shape& shape, std::uint64_t sequence) override {
    lay_out(shape.piece);
    for (std::int32_t to = 0; to < size_; ++to) {
      const auto i = static_cast<std::size_t>(to);
      fill_messages(measured_.send_buffer() + send_offsets_[i], {.bytes = send_bytes_[i]}, sequence, rank_,
                    to);
    }
  }
  void check(const Shape&, std::uint64_t sequence, Found& found) override {
    for (std::int32_t from = 0; from < size_; ++from) {
      const auto i = static_cast<std::size_t>(from);
      check_messages(receive_.data() + receive_offsets_[i], {.bytes = receive_bytes_[i]}, sequence, from,
                     rank_, found);
    }
  }

 protected:
  void call(const Shape&) override {
    measured_.alltoallv(measured_.send_buffer(), send_offsets_, send_bytes_, receive_.data(),
                        receive_offsets_, receive_bytes_, deadline_);
  }

 private:
  void lay_out(std::int64_t piece) {
    std::int64_t out = 0, in = 0;
    for (std::int32_t peer = 0; peer < size_; ++peer) {
      const auto i = static_cast<std::size_t>(peer);
      send_offsets_[i] = out;
      receive_offsets_[i] = in;
      out += send_bytes_[i] = uneven_piece(piece, rank_, peer);
      in += receive_bytes_[i] = uneven_piece(piece, peer, rank_);
    }
  }
  std::vector<std::int64_t> send_offsets_, send_bytes_, receive_offsets_, receive_bytes_;
  std::vector<std::byte> receive_;
};

}  // namespace

std::unique_ptr<Exercise> make_pair_exercise(const std::string& op, Pair& pair) {
  if (op == "put_bandwidth") return std::make_unique<Bandwidth>(pair);
  if (op == "put_bibandwidth") return std::make_unique<Bibandwidth>(pair);
  return std::make_unique<Latency>(pair, op == "put_latency");
}

std::unique_ptr<Exercise> make_memcpy_exercise(Pair& pair) {
  return std::make_unique<Memcpy>(pair);
}

std::unique_ptr<Exercise> make_collective_exercise(const std::string& op, Transport& transport,
                                                   Collectives& control, Collectives& measured,
                                                   const Shape& largest, std::chrono::milliseconds deadline) {
  if (op == "allgather") return std::make_unique<Allgather>(transport, control, measured, largest, deadline);
  if (op == "alltoall") return std::make_unique<Alltoall>(transport, control, measured, largest, deadline);
  if (op == "alltoallv") return std::make_unique<Alltoallv>(transport, control, measured, largest, deadline);
  return std::make_unique<Barrier>(transport, control, measured, deadline);
}

}  // namespace shunt::bench
