#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <stdexcept>
#include <utility>
#include <vector>

#include <shunt/alltoall/cuda.h>
#include <shunt/core/error.h>

#include "emulated.h"
#include "emulator/context.h"
#include "step_run.h"

namespace gpu {

/// One object of a case on one rank, and where it stands.
class RankRun {
 public:
  RankRun(shunt::Transport& transport, const sweep::ObjectPlan& plan,
          const shunt::cuda::AllToAllOptions& options, std::unique_ptr<shunt::cuda::detail::Engine> engine,
          shunt::emulator::Machine& machine)
      : plan_(&plan),
        rank_(transport.world().rank),
        machine_(&machine),
        object_(transport, plan.config, options, std::move(engine)) {}

  [[nodiscard]] shunt::cuda::AllToAll& object() { return object_; }
  [[nodiscard]] std::deque<StepRun>& runs() { return runs_; }
  /// Of the steps that follow: other ids than those of the reference.
  void bring(const std::vector<std::int64_t>& ids) { ids_ = ids; }

  /// Queues the next call of `step`.
  void advance(const sweep::StepPlan& step, oracle::Reference& reference) {
    switch (phase_) {
      case 0: {
        StepRun& run = runs_.emplace_back(*plan_, step, reference, rank_);
        if (!ids_.empty()) run.bring(ids_);
        const auto tokens = run.tokens_in(object_.token_buffer());
        // In the order of the stream, as a layer before would write them.
        machine_->launch(rank_, "write_tokens", {1, 32, 0}, [&run, tokens](shunt::emulator::Context& ctx) {
          if (ctx.thread() == 0) run.write_tokens(tokens);
        });
        dispatched_.emplace(object_.dispatch_send(tokens, run.ids(), nullptr));
        machine_->launch(rank_, "scribble", {1, 32, 0}, [&run](shunt::emulator::Context& ctx) {
          if (ctx.thread() == 0) run.scribble_tokens();
        });
        break;
      }
      case 1: {
        StepRun& run = runs_.back();
        const shunt::cuda::Received received = object_.dispatch_recv(std::move(*dispatched_), nullptr);
        machine_->launch(
            rank_, "experts", {1, 32, 0},
            [this, received, &run, output = object_.expert_output()](shunt::emulator::Context& ctx) {
              if (ctx.thread() != 0) return;
              const auto rows = on_host(plan_->config, plan_->num_ranks, rank_, received);
              run.check_received(rows);
              run.run_experts(rows, run.results(output));
            });
        break;
      }
      case 2: {
        StepRun& run = runs_.back();
        combined_.emplace(object_.combine_send(run.results(object_.expert_output()), nullptr));
        machine_->launch(rank_, "scribble", {1, 32, 0}, [&run](shunt::emulator::Context& ctx) {
          if (ctx.thread() == 0) run.scribble_results();
        });
        break;
      }
      default: {
        StepRun& run = runs_.back();
        object_.combine_recv(std::move(*combined_), run.weights(), run.out(), nullptr, run.accumulate());
      }
    }
    phase_ = (phase_ + 1) % 4;
  }

  /// dispatch_recv and combine_send without experts that look at the rows, for steps that fail.
  void receive_unchecked() {
    static_cast<void>(object_.dispatch_recv(std::move(*dispatched_), nullptr));
    phase_ = 2;
  }
  void return_unchecked() {
    combined_.emplace(object_.combine_send(runs_.back().results(object_.expert_output()), nullptr));
    phase_ = 3;
  }

  /// After the machine has run: every output, and what check() says.
  void check() {
    bool any_void = false;
    for (StepRun& run : runs_) {
      run.check_out();
      any_void = any_void || run.is_void();
    }
    runs_.clear();
    std::optional<shunt::Error> raised;
    try {
      object_.check();
    } catch (const shunt::Error& error) {
      raised = error;
    }
    if (raised.has_value() && (!any_void || raised->code() != shunt::Errc::overflow)) throw *raised;
    if (any_void && !raised.has_value()) throw std::runtime_error("no error, although rows overflow");
  }

 private:
  const sweep::ObjectPlan* plan_;
  std::int32_t rank_;
  shunt::emulator::Machine* machine_;
  shunt::cuda::AllToAll object_;
  int phase_ = 0;
  std::deque<StepRun> runs_;
  std::vector<std::int64_t> ids_;
  std::optional<shunt::cuda::Sent<shunt::Half::dispatch>> dispatched_;
  std::optional<shunt::cuda::Sent<shunt::Half::combine>> combined_;
};

/// One object of a case on all ranks.
struct World {
  std::vector<std::unique_ptr<RankRun>> ranks;
  std::deque<oracle::Reference> references;
  std::size_t step = 0;
  int phase = 0;
  std::unique_ptr<Postman> postman;
};

}  // namespace gpu
