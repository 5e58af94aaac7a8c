#include <shunt/plan/search.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <set>

#include <fmt/format.h>

#include <shunt/core/error.h>

namespace shunt::plan {
namespace {

constexpr std::int64_t kServingStages = 4;
constexpr std::int64_t kMostSequences = 1024;
constexpr std::int64_t kMostPrompts = 16;

[[noreturn]] void refuse(const std::string& why) {
  throw Error(Errc::invalid_argument, why);
}

std::vector<std::int64_t> divisors(std::int64_t n, std::int64_t most) {
  std::vector<std::int64_t> list;
  for (std::int64_t d = 1; d <= std::min(n, most); ++d)
    if (n % d == 0) list.push_back(d);
  return list;
}

/// Numbers that stand alone as N, so that like reasons count together; ranges in brackets stay as they are.
std::string kind_of(const std::string& message) {
  std::string kind;
  bool range = false;
  for (std::size_t i = 0; i < message.size(); ++i) {
    const auto digit = [&](std::size_t at) {
      return at < message.size() && std::isdigit(static_cast<unsigned char>(message[at])) != 0;
    };
    const bool starts = digit(i) && (i == 0 || std::isalnum(static_cast<unsigned char>(message[i - 1])) == 0);
    if (message[i] == '[') range = true;
    if (message[i] == ']') range = false;
    if (!starts || range) {
      kind += message[i];
      continue;
    }
    kind += 'N';
    while (digit(i + 1) || (i + 1 < message.size() && message[i + 1] == '.' && digit(i + 2))) ++i;
  }
  return kind;
}

struct Trial {
  PlanOptions options;
  double rate = 0;    ///< Tokens/s for each GPU: the more the better
  double second = 0;  ///< The less the better
};

class Searcher {
 public:
  Searcher(const ModelSpec& model, const Machine& machine, const SearchOptions& o, const CostModel* fits)
      : model_(model), machine_(machine), o_(o), fits_(fits), phase_(o.base.step.phase) {}

  SearchResult run() {
    if (phase_ == Phase::training) {
      layouts_of(machine_.gpus());
    } else {
      const std::int64_t most = o_.most_gpus > 0 ? o_.most_gpus : machine_.gpus();
      for (const std::int64_t gpus : divisors(machine_.gpus(), most)) layouts_of(gpus);
    }
    // Where no plan had a price, the request is wrong, not the layouts.
    if (result_.tried == 0)
      refuse(fmt::format("cp {}: no layout of {} GPUs has it", o_.base.step.layout.cp, machine_.gpus()));
    if (priced_ == 0) refuse(refused_.empty() ? result_.rejected.front().example : refused_);
    finish();
    return std::move(result_);
  }

 private:
  void layouts_of(std::int64_t gpus) {
    const std::int64_t cp = o_.base.step.layout.cp;
    const std::int64_t most_tp = o_.most_tp > 0 ? o_.most_tp : machine_.domain();
    const auto layers = static_cast<std::int64_t>(model_.layers.size());
    std::int64_t most_pp = o_.most_pp > 0 ? o_.most_pp : layers;
    if (phase_ != Phase::training && o_.most_pp == 0) most_pp = kServingStages;
    if (gpus % cp != 0) return;
    for (const std::int64_t tp : divisors(gpus / cp, most_tp))
      for (const std::int64_t pp : divisors(gpus / cp / tp, std::min(most_pp, layers))) {
        const std::int64_t stage = gpus / pp;
        for (const std::int64_t ep : divisors(
                 stage, std::max<std::int64_t>(1, model_.experts + o_.base.step.layout.redundant_experts)))
          for (const std::int64_t etp :
               tp == 1 ? std::vector<std::int64_t>{1} : std::vector<std::int64_t>{1, tp}) {
            if (stage % (ep * etp) != 0) continue;
            Layout layout = o_.base.step.layout;
            layout.tp = tp;
            layout.pp = pp;
            layout.dp = gpus / cp / tp / pp;
            layout.ep = ep;
            layout.etp = etp;
            layout.stage_layers.clear();
            try_layout(layout);
          }
      }
  }

  void try_layout(const Layout& layout) {
    try {
      (void)resolve(layout, model_);
    } catch (const Error& error) {
      if (error.code() != Errc::invalid_argument) throw;
      ++result_.tried;
      reject(kind_of(error.what()), error.what());
      return;
    }
    PlanOptions options = o_.base;
    options.step.layout = layout;
    options.idle_gpus = phase_ != Phase::training;
    if (phase_ == Phase::training) {
      try_training(options);
    } else {
      try_batches(options);
    }
  }

  void try_training(PlanOptions options) {
    TrainingOptions& t = options.step.training;
    struct Order {
      Schedule schedule;
      std::int64_t chunks;
    };
    std::vector<Order> orders = {{Schedule::one_f_one_b, 1}};
    if (options.step.layout.pp > 1)
      orders = {{Schedule::one_f_one_b, 1},
                {Schedule::interleaved, 2},
                {Schedule::zb_h1, 1},
                {Schedule::dualpipe, 1}};
    for (const std::int64_t micro : {1, 2, 4})
      for (const Order& order : orders)
        for (const Recompute recompute : {Recompute::none, Recompute::selective, Recompute::full}) {
          t.micro_batch = micro;
          t.schedule = order.schedule;
          t.chunks = order.chunks;
          t.recompute = recompute;
          // What is cheap to compute again.
          t.parts = {true, true, true, model_.attention.kind == AttentionKind::latent, false, false};
          // More recomputation is only for memory.
          if (try_one(options) != Outcome::memory) break;
        }
  }

  void try_batches(PlanOptions options) {
    StepTimeOptions& s = options.step;
    std::vector<std::int64_t> batches = o_.batches;
    if (batches.empty())
      for (std::int64_t n = 1; n <= (phase_ == Phase::decode ? kMostSequences : kMostPrompts); n *= 2)
        batches.push_back(n);
    for (const std::int64_t n : batches) {
      if (phase_ == Phase::decode) {
        if (n < s.layout.pp) continue;
        s.sequences = n;
      } else {
        s.batch_tokens = n * (s.prompt - s.cached);
      }
      // Larger batches need more memory and take longer.
      const Outcome outcome = try_one(options);
      if (outcome == Outcome::memory || outcome == Outcome::late) break;
    }
  }

  enum class Outcome { kept, memory, late, other };

  Outcome try_one(const PlanOptions& options) {
    ++result_.tried;
    PlanResult r;
    try {
      r = evaluate_plan(model_, machine_, options, fits_);
    } catch (const Error& error) {
      if (error.code() != Errc::invalid_argument) throw;
      if (refused_.empty()) refused_ = error.what();
      reject(kind_of(error.what()), error.what());
      return Outcome::other;
    }
    ++priced_;
    const std::string name = layout_name(r.time.options.layout);
    if (!r.fits) {
      reject("more memory than a GPU has",
             fmt::format("{}: {} too much", name, show_bytes(-r.margin_bytes())));
      return Outcome::memory;
    }
    const auto late = [&](const char* what, double ms, double target) {
      reject(fmt::format("{} above the target", what),
             fmt::format("{}: {:.4g} ms, the target is {:.4g}", name, ms, target));
      return Outcome::late;
    };
    if (o_.ttft_ms > 0 && r.time.ttft_ms > o_.ttft_ms)
      return late("time to the first token", r.time.ttft_ms, o_.ttft_ms);
    if (o_.tpot_ms > 0 && r.time.tpot_ms > o_.tpot_ms)
      return late("time between tokens", r.time.tpot_ms, o_.tpot_ms);
    const double all = r.time.tokens_per_s_per_gpu * static_cast<double>(machine_.gpus());
    if (o_.tokens_per_s > 0 && all < o_.tokens_per_s) {
      reject("fewer tokens/s than the target",
             fmt::format("{}: {:.4g} tokens/s, the target is {:.4g}", name, all, o_.tokens_per_s));
      return Outcome::other;
    }
    ++result_.feasible;
    double second = r.memory.worst_stage().total();
    if (phase_ == Phase::prefill) second = r.time.ttft_ms;
    if (phase_ == Phase::decode) second = r.time.tpot_ms;
    trials_.push_back({options, r.time.tokens_per_s_per_gpu, second});
    return Outcome::kept;
  }

  void reject(const std::string& reason, const std::string& example) {
    for (SearchResult::Rejected& one : result_.rejected) {
      if (one.reason != reason) continue;
      ++one.count;
      return;
    }
    result_.rejected.push_back({reason, 1, example});
  }

  void finish() {
    std::stable_sort(result_.rejected.begin(), result_.rejected.end(),
                     [](const auto& a, const auto& b) { return a.count > b.count; });
    std::stable_sort(trials_.begin(), trials_.end(), [](const Trial& a, const Trial& b) {
      return a.rate != b.rate ? a.rate > b.rate : a.second < b.second;
    });
    std::set<std::string> shown;
    double least = 0;
    for (const Trial& trial : trials_) {
      const std::string name = layout_name(trial.options.step.layout);
      if (static_cast<std::int64_t>(result_.best.size()) < o_.shown && shown.insert(name).second)
        result_.best.push_back(evaluate_plan(model_, machine_, trial.options, fits_));
      if (!result_.front.empty() && trial.second >= least) continue;
      least = trial.second;
      result_.front.push_back(evaluate_plan(model_, machine_, trial.options, fits_));
    }
  }

  const ModelSpec& model_;
  const Machine& machine_;
  const SearchOptions& o_;
  const CostModel* fits_;
  Phase phase_;
  std::vector<Trial> trials_;
  std::int64_t priced_ = 0;  ///< Plans with a time, whether or not they fit
  std::string refused_;      ///< Why the first plan of a possible layout has none
  SearchResult result_;
};

Table plans_table(const std::string& key, const std::vector<PlanResult>& plans, Phase phase) {
  Table table{
      key,
      {{"gpus", "GPUs"},
       {"tp", "tp"},
       {"pp", "pp"},
       {"dp", "dp"},
       {"ep", "ep"},
       {"etp", "etp"},
       {"batch", phase == Phase::training ? "micro" : (phase == Phase::decode ? "sequences" : "tokens")}},
      {}};
  if (phase == Phase::training) {
    table.columns.insert(table.columns.end(), {{"microbatches", "microbatches"},
                                               {"global_batch", "global batch"},
                                               {"schedule", "schedule"},
                                               {"recompute", "recompute"},
                                               {"step_ms", "step ms"},
                                               {"bubble", "bubble", Unit::share},
                                               {"model_flops_utilization", "utilization", Unit::share}});
  } else if (phase == Phase::prefill) {
    table.columns.push_back({"ttft_ms", "first token ms"});
  } else {
    table.columns.push_back({"tpot_ms", "between tokens ms"});
  }
  table.columns.insert(table.columns.end(), {{"tokens_per_s_per_gpu", "tokens/s/GPU"},
                                             {"total_bytes", "memory", Unit::bytes},
                                             {"margin_bytes", "left", Unit::bytes}});
  const auto digits = [](double value) {
    if (value == 0) return value;
    const double scale = std::pow(10, 4 - std::floor(std::log10(std::abs(value))));
    return std::round(value * scale) / scale;
  };
  for (const PlanResult& r : plans) {
    const StepTimeOptions& s = r.time.options;
    const Layout& l = s.layout;
    std::vector<RecordValue> row = {l.world(), l.tp, l.pp, l.dp, l.ep, l.etp};
    if (phase == Phase::training) {
      row.insert(row.end(), {s.training.micro_batch, s.training.microbatches,
                             s.training.micro_batch * s.training.microbatches * l.dp,
                             schedule_names()[static_cast<std::size_t>(s.training.schedule)],
                             recompute_names()[static_cast<std::size_t>(s.training.recompute)],
                             digits(r.time.step_us * 1e-3), r.time.bubble_us / r.time.step_us,
                             r.time.model_flops_utilization});
    } else if (phase == Phase::prefill) {
      row.insert(row.end(), {s.batch_tokens, digits(r.time.ttft_ms)});
    } else {
      row.insert(row.end(), {s.sequences, digits(r.time.tpot_ms)});
    }
    row.insert(row.end(), {digits(r.time.tokens_per_s_per_gpu), std::round(r.memory.worst_stage().total()),
                           std::round(r.margin_bytes())});
    table.rows.push_back(std::move(row));
  }
  return table;
}

void check(const SearchOptions& o) {
  const Phase phase = o.base.step.phase;
  if (o.ttft_ms > 0 && phase != Phase::prefill)
    refuse("a time to the first token is a target of --phase prefill");
  if (o.tpot_ms > 0 && phase != Phase::decode) refuse("a time between tokens is a target of --phase decode");
  for (const auto& [name, value] :
       {std::pair<const char*, double>{"ttft", o.ttft_ms}, {"tpot", o.tpot_ms}, {"tokens/s", o.tokens_per_s}})
    if (!(value >= 0 && value <= 1e15))
      refuse(fmt::format("{} {}: expected a number in [0, 1e15]", name, value));
  if (phase == Phase::training && !o.batches.empty()) refuse("batches to try are for prefill and decode");
  if (phase == Phase::training && o.most_gpus > 0) refuse("training takes all GPUs: give a smaller cluster");
  for (const std::int64_t n : o.batches)
    if (n < 1 || n > (1 << 20)) refuse(fmt::format("batch {}: expected a number in [1, 1048576]", n));
  if (o.shown < 1 || o.shown > 1000)
    refuse(fmt::format("{} plans to show: expected a number in [1, 1000]", o.shown));
}

}  // namespace

SearchResult search_plans(const ModelSpec& model, const Machine& machine, const SearchOptions& options,
                          const CostModel* fits) {
  check(options);
  return Searcher(model, machine, options, fits).run();
}

Report report_search(const ModelSpec& model, const Machine& machine, const SearchOptions& o,
                     const CostModel* fits) {
  const SearchResult result = search_plans(model, machine, o, fits);
  const Phase phase = o.base.step.phase;
  Report report("plan_search");
  report.head.set("model", model.name)
      .set("node", machine.node.name)
      .set("hosts", machine.hosts)
      .set("gpus", machine.gpus())
      .set("phase", phase_names()[static_cast<std::size_t>(phase)])
      .set("tried", result.tried)
      .set("feasible", result.feasible)
      .set("rejected", result.tried - result.feasible);
  report.summary.push_back(fmt::format(
      "{} on {} GPUs of {}, {}: {} plans tried, {} fit", model.name, machine.gpus(), machine.node.name,
      phase_names()[static_cast<std::size_t>(phase)], result.tried, result.feasible));
  if (result.best.empty()) {
    report.summary.emplace_back("no plan fits");
  } else {
    const StepTime& best = result.best.front().time;
    report.head.set("best", layout_name(best.options.layout))
        .set("best_tokens_per_s_per_gpu", best.tokens_per_s_per_gpu);
    report.summary.push_back(fmt::format("fastest: {}, {:.5g} tokens/s on each GPU",
                                         layout_name(best.options.layout), best.tokens_per_s_per_gpu));
  }
  report.tables.push_back(plans_table("best", result.best, phase));
  report.tables.push_back(plans_table("front", result.front, phase));
  Table rejected{"rejections", {{"count", "left out"}, {"reason", "reason"}, {"example", "for example"}}, {}};
  for (const auto& one : result.rejected) rejected.rows.push_back({one.count, one.reason, one.example});
  report.tables.push_back(rejected);
  report.notes.push_back(fmt::format("the second table is the Pareto front of tokens/s for each GPU and {}",
                                     phase == Phase::training  ? "memory"
                                     : phase == Phase::prefill ? "the time to the first token"
                                                               : "the time between tokens"));
  if (phase == Phase::training && o.base.global_batch == 0)
    report.notes.emplace_back(
        "without --global-batch each layout has the microbatches that fill its pipeline, so global batches "
        "differ: compare tokens/s with that in mind, or give --global-batch");
  if (phase == Phase::training)
    report.notes.emplace_back("recomputation is tried only where the plan without it does not fit");
  return report;
}

}  // namespace shunt::plan
