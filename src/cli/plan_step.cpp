#include <functional>
#include <memory>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <CLI/CLI.hpp>

#include <shunt/cluster/calibration.h>
#include <shunt/cluster/hardware.h>
#include <shunt/cluster/model.h>
#include <shunt/cluster/model_shape.h>
#include <shunt/core/error.h>
#include <shunt/plan/grouping.h>
#include <shunt/plan/step_time.h>

#include "add_option.h"
#include "plan.h"

namespace shunt::cli {
namespace {

constexpr std::int64_t kMany = std::int64_t{1} << 40;

struct Options {
  plan::StepTimeOptions step;
  MachineOptions machine;
  std::string model;
  std::string node;
  std::string fit;
  std::string loads;
  // Empty: as published (serving) or bf16 (training).
  std::string weights, expert_weights, math, expert_math;
  std::vector<std::string> training_only, prefill_only, decode_only, serving_only;
  plan::Format format = plan::Format::text;
};

/// Adds options of one kind and notes which were given.
class Adder {
 public:
  Adder(CLI::App& app, std::vector<std::string>* given) : app_(app), given_(given) {}

  void count(const char* name, const char* help, std::int64_t& value, std::int64_t low = 0) const {
    text(name, help, "N", [&value, low](const std::string& option, const std::string& typed) {
      value = bench::parse_whole(option, typed, low, kMany);
    });
  }
  void real(const char* name, const char* help, double& value, double low, double high) const {
    text(name, help, "X", [&value, low, high](const std::string& option, const std::string& typed) {
      value = bench::parse_number(option, typed, low, high);
    });
  }
  template <class T>
  void choice(const char* name, const char* help, T& value, const std::vector<std::string>& names) const {
    text(name, fmt::format("{}: {}", help, fmt::join(names, ", ")), "NAME",
         [&value, names](const std::string& option, const std::string& typed) {
           value = static_cast<T>(choose(option, typed, names));
         });
  }
  void word(const char* name, const char* help, std::string& value,
            const std::vector<std::string>& names) const {
    text(name, fmt::format("{}: {}", help, fmt::join(names, ", ")), "NAME",
         [&value, names](const std::string& option, const std::string& typed) {
           (void)choose(option, typed, names);
           value = typed;
         });
  }
  void flag(const char* name, const char* help, const std::function<void()>& set) const {
    app_.add_flag_callback(
        name,
        [set, given = given_, name] {
          set();
          if (given != nullptr) given->emplace_back(name);
        },
        help);
  }
  void text(const char* name, const std::string& help, const char* type,
            const std::function<void(const std::string&, const std::string&)>& set) const {
    add_text(app_, name, help, type,
             [set, given = given_](const std::string& option, const std::string& typed) {
               set(option, typed);
               if (given != nullptr) given->push_back(option);
             });
  }

 private:
  CLI::App& app_;
  std::vector<std::string>* given_;
};

const std::vector<std::string>& math_names() {
  static const std::vector<std::string> names = {"bf16", "fp8", "fp4"};
  return names;
}

const std::vector<std::string>& path_names() {
  static const std::vector<std::string> names = {"automatic", "flat", "hierarchical", "rail_aligned"};
  return names;
}

void add_layout(CLI::App& app, Options& o) {
  const Adder add(app, nullptr);
  plan::Layout& layout = o.step.layout;
  add.count("--tp", "Tensor parallel (1)", layout.tp, 1);
  add.count("--pp", "Pipeline stages (1)", layout.pp, 1);
  add.count("--ep", "Expert parallel; ep * etp divides tp * cp * dp (1)", layout.ep, 1);
  add.count("--dp", "Data parallel (1)", layout.dp, 1);
  add.count("--cp", "Context parallel, for training (1)", layout.cp, 1);
  add.count("--etp", "Tensor parallel of the experts (tp where ep is 1, else 1)", layout.etp, 1);
  add.text("--stage-layers", "Layers of each stage (evenly)", "N,...",
           [&layout](const std::string& option, const std::string& text) {
             layout.stage_layers.clear();
             for (const std::string& part : bench::split_list(option, text))
               layout.stage_layers.push_back(bench::parse_whole(option, part, 1, 1 << 20));
           });
}

void add_machine(CLI::App& app, Options& o) {
  const Adder add(app, nullptr);
  app.add_option("--model", o.model,
                 "Preset, TOML file, Hugging Face config.json, or a directory that holds one")
      ->type_name("MODEL")
      ->required();
  app.add_option("--node", o.node, "Node preset (presets/hardware/nodes), or a path that ends in .toml")
      ->type_name("NAME")
      ->required();
  add.count("--hosts", "Nodes (1)", o.machine.hosts, 1);
  add.real("--oversubscription", "Of the switches above the rails: bandwidth below over bandwidth above (1)",
           o.machine.oversubscription, 1, 64);
  add.count("--pod-gpus", "GPUs that reach each other on one rail without those switches (0: all)",
            o.machine.pod_gpus);
  add.choice("--phase", "What a step is (training)", o.step.phase, plan::phase_names());
  app.add_option("--fit", o.fit, "Fit file of shunt calibrate (the one that comes with Shunt)")
      ->type_name("FILE");
}

void add_training(CLI::App& app, Options& o) {
  const Adder add(app, &o.training_only);
  plan::TrainingOptions& t = o.step.training;
  add.count("--micro-batch", "Sequences of a microbatch (1)", t.micro_batch, 1);
  add.count("--microbatches", "Of a step on each data-parallel rank (pp)", t.microbatches, 1);
  add.count("--sequence", "Tokens of a sequence (4096)", t.sequence, 1);
  add.count("--zero", "0 to 3: what data-parallel ranks divide among themselves (1: optimizer states)",
            t.zero);
  add.count("--gradient-bytes", "2 or 4 (4)", t.gradient_bytes);
  add.choice("--optimizer", "Optimizer (adam)", t.optimizer, plan::optimizer_names());
  add.choice("--schedule", "Pipeline schedule (1f1b)", t.schedule, plan::schedule_names());
  add.count("--chunks", "Model chunks of a stage, for interleaved (1)", t.chunks, 1);
  add.choice("--recompute", "What the backward pass computes again (none)", t.recompute,
             plan::recompute_names());
  add.flag("--no-sequence-parallel", "Norms and dropout whole on every tensor-parallel rank",
           [&t] { t.sequence_parallel = false; });
  add.flag("--unfused-attention", "Attention scores go through memory", [&t] { t.flash_attention = false; });
  add.flag("--dropout", "With dropout", [&t] { t.dropout = true; });
  add.flag("--mtp", "With the multi-token prediction modules", [&t] { t.mtp = true; });
  add.real("--overlap-gradients", "Share of the gradient sync that may hide behind a backward pass (0)",
           o.step.overlap_gradients, 0, 1);
}

void add_serving(CLI::App& app, Options& o) {
  plan::StepTimeOptions& s = o.step;
  const Adder prefill(app, &o.prefill_only);
  prefill.count("--prompt", "Prefill: tokens of one prompt (4096)", s.prompt, 1);
  prefill.count("--cached", "Prefill: tokens of it that are in the cache (0)", s.cached);
  prefill.count("--batch-tokens", "Prefill: tokens of one pass on each data-parallel rank (16384)",
                s.batch_tokens, 1);
  const Adder decode(app, &o.decode_only);
  decode.count("--sequences", "Decode: sequences at once on each data-parallel rank (128)", s.sequences, 1);
  decode.count("--context", "Decode: mean tokens in the cache of each (4096)", s.context, 1);
  decode.count("--drafts", "Decode: speculated tokens of a step (0)", s.drafts);
  decode.real("--acceptance", "Decode: probability that a draft is accepted after those before it (0)",
              s.acceptance, 0, 1);
  const Adder add(app, &o.serving_only);
  add.word("--weights", "Attention, dense MLPs, shared experts (as published)", o.weights,
           weight_format_names());
  add.word("--expert-weights", "Routed experts (as published)", o.expert_weights, weight_format_names());
  add.text("--kv-dtype", "bf16 or fp8 (bf16)", "NAME",
           [&s](const std::string& option, const std::string& text) {
             s.kv_element_bytes = choose(option, text, {"bf16", "fp8"}) == 0 ? 2 : 1;
           });
  add.count("--redundant-experts", "Copies of experts of a layer, all ranks together (0)",
            s.layout.redundant_experts);
}

void add_work(CLI::App& app, Options& o) {
  const Adder add(app, nullptr);
  plan::StepTimeOptions& s = o.step;
  add.word("--math",
           "Products of attention, dense MLPs, shared experts (training bf16, serving as published)", o.math,
           math_names());
  add.word("--expert-math", "Products of routed experts (the same)", o.expert_math, math_names());
  app.add_option("--dispatch-payload", s.dispatch_payload,
                 "Rows on their way to experts (fp8_block128, or bfloat16 with bf16)")
      ->type_name("TYPE");
  app.add_option("--combine-payload", s.combine_payload, "Rows on their way back (bfloat16)")
      ->type_name("TYPE");
  add.choice("--exchange", "What prices dispatch and combine (automatic)", s.kernels,
             plan::exchange_kernel_names());
  add.choice("--path", "With --exchange tiers: way of the tokens (automatic)", s.path, path_names());
  add.count("--exchange-sms", "Multiprocessors of normal dispatch and combine (24)", s.exchange_sms);
  add.flag("--two-batches", "Two batches in turn: one's exchange behind the other's computation",
           [&s] { s.two_batches = true; });
  add.real("--overlap-tensor", "Share of tensor-parallel collectives that is hidden (0)", s.overlap_tensor, 0,
           1);
  add.real("--overlap-pipeline", "Share of transfers between stages that is hidden (0)", s.overlap_pipeline,
           0, 1);
  add.text("--imbalance", "Load of the busiest rank over the mean (1)", "X",
           [&s](const std::string& option, const std::string& text) {
             s.imbalance = s.training.imbalance = bench::parse_number(option, text, 1, 1e9);
           });
  add.real("--power-law", "Loads of experts by a power law of this exponent, instead of --imbalance",
           s.power_law, 0, 10);
  app.add_option("--loads", o.loads,
                 "File of recorded loads, one number for each expert, instead of --imbalance")
      ->type_name("FILE");
  add.real("--matrix-efficiency", "Share of the dense rate that large products reach (0.75)",
           s.efficiency.matrix, 0.01, 1);
  add.real("--grouped-efficiency", "The same for products of experts (0.7)", s.efficiency.grouped_matrix,
           0.01, 1);
  add.real("--attention-efficiency", "The same for fused attention (0.6)", s.efficiency.attention, 0.01, 1);
  add_format(app, o.format);
}

/// An option that this phase does not read would do nothing, which nobody who gives one expects.
void refuse_other_phases(const Options& o) {
  const auto phase = o.step.phase;
  const auto refuse = [&](const std::vector<std::string>& given, bool allowed, const char* what) {
    if (allowed || given.empty()) return;
    throw Error(Errc::invalid_argument,
                fmt::format("{} {} for {}, this is --phase {}", fmt::join(given, ", "),
                            given.size() == 1 ? "is" : "are", what,
                            plan::phase_names()[static_cast<std::size_t>(phase)]));
  };
  refuse(o.training_only, phase == plan::Phase::training, "training");
  refuse(o.prefill_only, phase == plan::Phase::prefill, "prefill");
  refuse(o.decode_only, phase == plan::Phase::decode, "decode");
  refuse(o.serving_only, phase != plan::Phase::training, "prefill and decode");
}

int run(Options o) {
  refuse_other_phases(o);
  const ModelSpec model = find_model(o.model, preset_directory());
  const Machine machine = make_machine(find_node(o.node, hardware_directory()), o.machine);
  plan::StepTimeOptions& s = o.step;
  if (s.phase != plan::Phase::training) use_published_formats(model, machine, s);
  if (!o.weights.empty())
    s.weights = static_cast<WeightFormat>(choose("--weights", o.weights, weight_format_names()));
  if (!o.expert_weights.empty())
    s.expert_weights =
        static_cast<WeightFormat>(choose("--expert-weights", o.expert_weights, weight_format_names()));
  if (!o.math.empty()) s.math = parse_math_type(o.math);
  if (!o.expert_math.empty()) s.expert_math = parse_math_type(o.expert_math);
  if (!o.loads.empty()) {
    const std::vector<float> loads = plan::read_loads(o.loads);
    s.expert_loads.assign(loads.begin(), loads.end());
  }
  const Calibration calibration = read_calibration(o.fit.empty() ? default_calibration_path() : o.fit);
  const CostModel fits(calibration, hardware_directory());
  print_report(plan::report_step_time(model, machine, plan::step_time(model, machine, s, &fits)), o.format);
  return 0;
}

}  // namespace

void add_plan_step(CLI::App& parent, Command& command) {
  const auto options = std::make_shared<Options>();
  CLI::App* app = parent.add_subcommand(
      "step", "How long one training step, prefill pass or decode step takes, part by part");
  add_machine(*app, *options);
  add_layout(*app, *options);
  add_training(*app, *options);
  add_serving(*app, *options);
  add_work(*app, *options);
  app->callback([&command, options] { command = [options] { return run(*options); }; });
}

}  // namespace shunt::cli
