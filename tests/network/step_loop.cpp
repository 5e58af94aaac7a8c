// One process, or the ranks of one node, of a job that steps until something happens to it: what
// tests/network/failures kills, freezes and cuts off. Every row that arrives and every combined element is
// compared by bits with what a plain loop computes from the step's seed, lost ranks left out.
//
//   step_loop [--ranks N] [--nodes N] [--transport T] [--provider P] [--deadline-ms N] [--steps N] [--mask] [--delayed]
//
// It joins the job that its environment describes (MASTER_ADDR …, RANK, mpirun, srun), or starts --ranks ranks.
// --steps: end after that many steps; 0, the default, never. With --mask, where a rank is lost, all others go on
// for 50 steps after it. Lines on standard output, each written at once, times by the monotonic clock:
//   step_loop: rank=R pid=P ready
//   step_loop: rank=R masked at=SECONDS lost=A,B step=N
//   step_loop: rank=R completed at=SECONDS steps=N
//   step_loop: rank=R error at=SECONDS steps=N call_ms=N code=CODE: MESSAGE
#include <unistd.h>

#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include <shunt/alltoall/all_to_all.h>
#include <shunt/core/error.h>
#include <shunt/core/random.h>
#include <shunt/layout/partition.h>
#include <shunt/transport/launch.h>
#include <shunt/transport/transport.h>
#include <shunt/transport/wrap.h>

namespace {

using shunt::Errc;
using shunt::Error;

constexpr std::int64_t kMostTokens = 12;
constexpr std::int32_t kTopK = 4;
constexpr std::int64_t kHidden = 200;
constexpr std::int32_t kExpertsPerRank = 3;
constexpr std::int64_t kStepsAfterALoss = 50;

struct Options {
  shunt::LaunchOptions launch;
  std::chrono::milliseconds deadline{3000};
  std::int64_t steps = 0;
  bool mask = false;
  bool delayed = false;
};

/// What one rank brings to a step: a pure function of step and rank, so that every rank knows everybody's.
struct Input {
  std::int64_t tokens = 0;
  std::vector<float> rows;        ///< [T, H]
  std::vector<std::int32_t> ids;  ///< [T, K]
  std::vector<float> weights;     ///< [T, K]
};

std::size_t at(std::int64_t i) {
  return static_cast<std::size_t>(i);
}

Input make_input(std::int64_t step, std::int32_t rank, std::int32_t experts) {
  shunt::Random dice(static_cast<std::uint64_t>(step), static_cast<std::uint64_t>(rank));
  Input made;
  made.tokens = static_cast<std::int64_t>(dice.below(kMostTokens + 1));
  for (std::int64_t i = 0; i < made.tokens * kHidden; ++i)
    made.rows.push_back(static_cast<float>(dice.next_u32() >> 8) * 0x1p-20F);
  for (std::int64_t token = 0; token < made.tokens; ++token) {
    const auto first = static_cast<std::int32_t>(dice.below(static_cast<std::uint64_t>(experts)));
    // Consecutive experts lie on one or two ranks, so that tokens go twice to the same rank too.
    for (std::int32_t k = 0; k < kTopK; ++k) {
      made.ids.push_back((first + k) % experts);
      made.weights.push_back(static_cast<float>(dice.uniform()));
    }
  }
  return made;
}

/// What an expert makes of one element.
float expert_result(float element, std::int32_t expert) {
  return element * (1.0F + static_cast<float>(expert) * 0.37F);
}

double now_seconds() {
  return std::chrono::duration<double>(shunt::Clock::now().time_since_epoch()).count();
}

/// One write, so that lines of several processes do not mix.
void say(const std::string& text) {
  const std::string line = "step_loop: " + text + "\n";
  const char* rest = line.data();
  for (std::size_t left = line.size(); left > 0;) {
    const ssize_t written = write(STDOUT_FILENO, rest, left);
    if (written <= 0) return;
    rest += written;
    left -= static_cast<std::size_t>(written);
  }
}

class Loop {
 public:
  Loop(shunt::Transport& transport, const Options& options)
      : options_(options),
        rank_(transport.world().rank),
        size_(transport.world().size),
        experts_{.num_experts = size_ * kExpertsPerRank, .num_ranks = size_},
        alive_(at(size_), 1),
        call_began_(shunt::Clock::now()),
        object_(transport, config(options, size_)) {}

  [[nodiscard]] static std::int64_t steps_done() { return steps_done_; }

  void run() {
    std::int64_t last = options_.steps == 0 ? INT64_MAX : options_.steps;
    for (std::int64_t number = 0; number < last; ++number) {
      try {
        step(number);
      } catch (const Error& error) {
        if (error.code() != Errc::peer_masked) throw;
        take_loss(number);
        last = number + kStepsAfterALoss;
        --number;  // The step is void and comes again.
        continue;
      }
      if (steps_done_++ == 0) say(fmt::format("rank={} pid={} ready", rank_, getpid()));
    }
    say(fmt::format("rank={} completed at={:.6f} steps={}", rank_, now_seconds(), steps_done_));
  }

  [[nodiscard]] std::int64_t call_ms() const {
    return std::chrono::duration_cast<std::chrono::milliseconds>(shunt::Clock::now() - call_began_).count();
  }

 private:
  static shunt::AllToAllConfig config(const Options& options, std::int32_t ranks) {
    shunt::AllToAllConfig made;
    made.max_tokens = kMostTokens;
    made.num_experts = ranks * kExpertsPerRank;
    made.top_k = kTopK;
    made.hidden = kHidden;
    made.token_dtype = made.payload = made.expert_dtype = made.out_dtype = shunt::DType::f32;
    made.deadline = options.deadline;
    made.on_peer_loss = options.mask ? shunt::PeerLoss::mask : shunt::PeerLoss::fail;
    return made;
  }

  void step(std::int64_t number) {
    std::vector<Input> inputs;
    for (std::int32_t rank = 0; rank < size_; ++rank)
      inputs.push_back(make_input(number, rank, experts_.num_experts));
    Input& mine = inputs[at(rank_)];
    const shunt::View2<const std::int32_t> ids(mine.ids.data(), mine.tokens, kTopK);
    call_began_ = shunt::Clock::now();
    auto dispatched = object_.dispatch_send(
        {.tokens = shunt::Rows(mine.rows.data(), mine.tokens, kHidden, shunt::DType::f32)}, ids);
    call_began_ = shunt::Clock::now();
    const shunt::Received received = object_.dispatch_recv(std::move(dispatched));
    check_received(number, received, inputs);
    const shunt::MutableRows results = object_.expert_output();
    work(received, results);
    call_began_ = shunt::Clock::now();
    auto combined = object_.combine_send(shunt::Rows(results.data, received.starts.back(), kHidden,
                                                     shunt::DType::f32, results.row_stride_bytes));
    std::vector<float> out(at(kMostTokens * kHidden), NAN);
    call_began_ = shunt::Clock::now();
    object_.combine_recv(std::move(combined), {mine.weights.data(), mine.tokens, kTopK},
                         {out.data(), mine.tokens, kHidden, shunt::DType::f32});
    call_began_ = shunt::Clock::now();
    check_combined(number, mine, out);
  }

  void work(const shunt::Received& received, const shunt::MutableRows& results) const {
    for (std::int32_t local = 0; local < experts_.count(rank_); ++local) {
      for (std::int64_t i = 0; i < received.counts[at(local)]; ++i) {
        const std::int64_t row = received.starts[at(local)] + i;
        std::vector<float> element(at(kHidden));
        std::memcpy(element.data(), received.rows.row(row), element.size() * sizeof(float));
        for (float& value : element) value = expert_result(value, experts_.first(rank_) + local);
        std::memcpy(results.row(row), element.data(), element.size() * sizeof(float));
      }
    }
  }

  /// Rows by (expert, source, token), those of lost ranks missing.
  void check_received(std::int64_t number, const shunt::Received& received,
                      const std::vector<Input>& inputs) const {
    for (std::int32_t local = 0; local < experts_.count(rank_); ++local) {
      const std::int32_t expert = experts_.first(rank_) + local;
      std::int64_t row = received.starts[at(local)];
      for (std::int32_t source = 0; source < size_; ++source) {
        if (alive_[at(source)] == 0) continue;
        const Input& input = inputs[at(source)];
        for (std::int64_t choice = 0; choice < input.tokens * kTopK; ++choice) {
          if (input.ids[at(choice)] != expert) continue;
          const float* sent = input.rows.data() + choice / kTopK * kHidden;
          if (row - received.starts[at(local)] >= received.counts[at(local)] ||
              std::memcmp(received.rows.row(row), sent, at(kHidden) * sizeof(float)) != 0)
            throw Error(Errc::check_failed,
                        fmt::format("rank {}: step {}: row {} of expert {} is not token {} of rank {}", rank_,
                                    number, row, expert, choice / kTopK, source));
          ++row;
        }
      }
      if (row != received.starts[at(local)] + received.counts[at(local)])
        throw Error(Errc::check_failed,
                    fmt::format("rank {}: step {}: expert {} got {} rows too many", rank_, number, expert,
                                received.starts[at(local)] + received.counts[at(local)] - row));
    }
  }

  void check_combined(std::int64_t number, const Input& mine, const std::vector<float>& out) const {
    for (std::int64_t token = 0; token < mine.tokens; ++token) {
      for (std::int64_t column = 0; column < kHidden; ++column) {
        float sum = 0;
        for (std::int32_t k = 0; k < kTopK; ++k) {
          const std::int32_t expert = mine.ids[at(token * kTopK + k)];
          if (alive_[at(experts_.owner(expert))] == 0) continue;
          sum = std::fma(mine.weights[at(token * kTopK + k)],
                         expert_result(mine.rows[at(token * kHidden + column)], expert), sum);
        }
        const float found = out[at(token * kHidden + column)];
        if (std::memcmp(&sum, &found, sizeof sum) != 0)
          throw Error(Errc::check_failed,
                      fmt::format("rank {}: step {}: element {} of token {} is {}, not {}", rank_, number,
                                  column, token, found, sum));
      }
    }
  }

  void take_loss(std::int64_t number) {
    std::string lost;
    for (std::int32_t rank = 0; rank < size_; ++rank) {
      alive_[at(rank)] = object_.alive()[at(rank)];
      if (alive_[at(rank)] == 0) lost += (lost.empty() ? "" : ",") + std::to_string(rank);
    }
    say(fmt::format("rank={} masked at={:.6f} lost={} step={}", rank_, now_seconds(), lost, number));
  }

  const Options& options_;
  std::int32_t rank_;
  std::int32_t size_;
  shunt::ExpertPartition experts_;
  std::vector<std::uint8_t> alive_;
  shunt::Clock::time_point call_began_;
  shunt::AllToAll object_;
  inline static std::int64_t steps_done_ = 0;
};

int run_rank(shunt::Transport& transport, const Options& options) {
  std::unique_ptr<shunt::Transport> wrapper;
  std::unique_ptr<Loop> loop;
  try {
    if (options.delayed)
      wrapper = shunt::make_delayed(transport, {.seed = 5, .max_delay = std::chrono::microseconds(200)});
    loop = std::make_unique<Loop>(wrapper == nullptr ? transport : *wrapper, options);
    loop->run();
    loop.reset();
    return 0;
  } catch (const Error& error) {
    say(fmt::format("rank={} error at={:.6f} steps={} call_ms={} code={}: {}", transport.world().rank,
                    now_seconds(), Loop::steps_done(), loop == nullptr ? 0 : loop->call_ms(),
                    shunt::errc_name(error.code()), error.what()));
    throw;
  }
}

Options parse(int argc, char** argv, bool& explicit_ranks) {
  Options made;
  made.launch.transport = "auto";
  const auto number = [](const std::string& name, const std::string& text) {
    std::size_t end = 0;
    long long value = -1;
    try {
      value = std::stoll(text, &end);
    } catch (const std::exception&) {
      end = 0;
    }
    if (end != text.size() || text.empty() || value < 0)
      throw Error(Errc::invalid_argument, name + " is '" + text + "'; a whole number from 0 is allowed");
    return static_cast<std::int64_t>(value);
  };
  for (int i = 1; i < argc; ++i) {
    const std::string name = argv[i];
    if (name == "--mask" || name == "--delayed") {
      (name == "--mask" ? made.mask : made.delayed) = true;
      continue;
    }
    if (i + 1 == argc) throw Error(Errc::invalid_argument, name + " needs a value");
    const std::string value = argv[++i];
    if (name == "--ranks") {
      made.launch.ranks = static_cast<std::int32_t>(number(name, value));
      explicit_ranks = true;
    } else if (name == "--nodes") {
      made.launch.nodes = static_cast<std::int32_t>(number(name, value));
    } else if (name == "--transport") {
      made.launch.transport = value;
    } else if (name == "--provider") {
      made.launch.provider = value;
    } else if (name == "--deadline-ms") {
      made.deadline = std::chrono::milliseconds(number(name, value));
    } else if (name == "--steps") {
      made.steps = number(name, value);
    } else {
      throw Error(Errc::invalid_argument, "unknown option " + name);
    }
  }
  made.launch.stall_deadline = made.deadline;
  return made;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    bool explicit_ranks = false;
    const Options options = parse(argc, argv, explicit_ranks);
    shunt::LaunchSession session(shunt::detect_launch(explicit_ranks ? options.launch.ranks : 0,
                                                      [](const char* name) { return std::getenv(name); }));
    const auto outcomes = session.run(
        options.launch, [&](shunt::Transport& transport) { return run_rank(transport, options); });
    return shunt::combined_status(outcomes);
  } catch (const Error& error) {
    std::cerr << "step_loop: " << error.what() << "\n";
    return shunt::exit_status(error.code());
  }
}
