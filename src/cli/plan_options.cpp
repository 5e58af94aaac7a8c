#include "plan_options.h"

#include <functional>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <shunt/cluster/model_shape.h>
#include <shunt/cluster/volume.h>
#include <shunt/plan/grouping.h>

namespace shunt::cli {
namespace {

constexpr double kGiB = 1024.0 * 1024 * 1024;
constexpr std::int64_t kMany = std::int64_t{1} << 40;

using Given = std::vector<std::string>;

/// Adds options and notes which of them were given.
class Adder {
 public:
  Adder(CLI::App& app, Given* given) : app_(app), given_(given) {}

  void text(const char* name, const std::string& help, const char* type,
            const std::function<void(const std::string&, const std::string&)>& set) {
    Given* given = given_;
    add_text(app_, name, help, type, [set, given](const std::string& option, const std::string& value) {
      set(option, value);
      if (given != nullptr) given->push_back(option);
    });
  }
  void count(const char* name, const std::string& help, std::int64_t& value, std::int64_t least = 0) {
    text(name, help, "N", [&value, least](const std::string& option, const std::string& given) {
      value = parse_whole(option, given, least, kMany);
    });
  }
  void real(const char* name, const std::string& help, double& value, double least, double most) {
    text(name, help, "X", [&value, least, most](const std::string& option, const std::string& given) {
      value = parse_number(option, given, least, most);
    });
  }
  template <class T>
  void choice(const char* name, const std::string& help, T& value, const std::vector<std::string>& names) {
    text(name, fmt::format("{}: {}", help, fmt::join(names, ", ")), "NAME",
         [&value, &names](const std::string& option, const std::string& given) {
           value = static_cast<T>(choose(option, given, names));
         });
  }

 private:
  CLI::App& app_;
  Given* given_;
};

void add_layout(CLI::App& app, plan::Layout& layout) {
  Adder add(app, nullptr);
  add.count("--tp", "Tensor parallel (1)", layout.tp, 1);
  add.count("--pp", "Pipeline stages (1)", layout.pp, 1);
  add.count("--ep", "Expert parallel; ep * etp divides tp * cp * dp (1)", layout.ep, 1);
  add.count("--dp", "Data parallel (1)", layout.dp, 1);
  add.count("--etp", "Tensor parallel of the experts (tp where ep is 1, else 1)", layout.etp, 1);
  add.text("--stage-layers", "Layers of each stage (evenly)", "N,...",
           [&layout](const std::string& option, const std::string& text) {
             layout.stage_layers.clear();
             for (const std::string& part : split_list(option, text))
               layout.stage_layers.push_back(parse_whole(option, part, 1, 1 << 20));
           });
}

void add_training(CLI::App& app, PlanRequest& r, const PlanOptionParts& parts) {
  plan::TrainingOptions& t = r.plan.step.training;
  Adder add(app, &r.training_only);
  add.count("--cp", "Context parallel, for training (1)", r.plan.step.layout.cp, 1);
  add.count("--sequence", "Training: tokens of a sequence (4096)", t.sequence, 1);
  if (parts.whole)
    add.count("--global-batch", "Training: sequences of a step over all ranks, instead of --microbatches",
              r.plan.global_batch, 1);
  add.count("--zero",
            "Training: 0 to 3, what data-parallel ranks divide among themselves (1: optimizer states)",
            t.zero);
  add.count("--gradient-bytes", "Training: 2 or 4 (4)", t.gradient_bytes);
  add.choice("--optimizer", "Training: optimizer states (adam)", t.optimizer, plan::optimizer_names());
  add.real("--overlap-gradients",
           "Training: share of the gradient sync that may hide behind the last backward pass, and of ZeRO "
           "3's weight "
           "gathers behind the other computation (0)",
           r.plan.step.overlap_gradients, 0, 1);
  const auto flag = [&](const char* name, const char* help, bool& value, bool to) {
    app.add_flag_callback(
        name,
        [&r, name, &value, to] {
          value = to;
          r.training_only.emplace_back(name);
        },
        help);
  };
  flag("--no-sequence-parallel", "Training: norms and dropout whole on every tensor-parallel rank",
       t.sequence_parallel, false);
  flag("--unfused-attention", "Training: attention scores go through memory", t.flash_attention, false);
  flag("--dropout", "Training: with dropout", t.dropout, true);
  flag("--mtp", "Training: with the multi-token prediction modules", t.mtp, true);
  if (!parts.layout) return;
  add.count("--micro-batch", "Training: sequences of a microbatch (1)", t.micro_batch, 1);
  add.count("--microbatches", "Training: microbatches of a step on each data-parallel rank (pp)",
            t.microbatches, 1);
  add.choice("--schedule", "Training: pipeline schedule (1f1b)", t.schedule, plan::schedule_names());
  add.count("--chunks", "Training: model chunks of a stage, for interleaved", t.chunks, 1);
  add.choice("--recompute", "Training: what the backward pass computes again (none)", t.recompute,
             plan::recompute_names());
}

void add_serving(CLI::App& app, PlanRequest& r, const PlanOptionParts& parts) {
  plan::StepTimeOptions& s = r.plan.step;
  Adder prefill(app, &r.prefill_only);
  prefill.count("--prompt", "Prefill: tokens of a prompt (4096)", s.prompt, 1);
  prefill.count("--cached", "Prefill: of these, in the cache already (0)", s.cached);
  Adder decode(app, &r.decode_only);
  decode.count("--context", "Decode: mean tokens of a sequence in the cache (4096)", s.context, 1);
  decode.count("--drafts", "Decode: tokens that speculation adds to a step of a sequence (0)", s.drafts);
  decode.real("--acceptance", "Decode: probability that a draft is accepted, given those before it (0)",
              s.acceptance, 0, 1);
  if (parts.layout) {
    prefill.count("--batch-tokens",
                  "Prefill: tokens of one pass on each data-parallel rank, whole prompts (16384)",
                  s.batch_tokens, 1);
    decode.count("--sequences", "Decode: sequences at once on each data-parallel rank (128)", s.sequences, 1);
  }
  Adder both(app, &r.serving_only);
  const auto format = [&both](const char* name, const char* help, std::string& value) {
    both.text(name, fmt::format("{}: {}", help, fmt::join(weight_format_names(), ", ")), "NAME",
              [&value](const std::string& option, const std::string& text) {
                (void)choose(option, text, weight_format_names());
                value = text;
              });
  };
  format("--weights", "Serving: attention, dense MLPs and shared experts (as published)", r.weights);
  format("--expert-weights", "Serving: routed experts (as published)", r.expert_weights);
  both.text("--kv-dtype", "Serving: bf16 or fp8 (bf16)", "NAME",
            [&s](const std::string& option, const std::string& text) {
              s.kv_element_bytes = choose(option, text, {"bf16", "fp8"}) == 0 ? 2 : 1;
            });
  if (parts.whole)
    both.real("--gpu-util", "Serving: share of the GPU's memory that may be used (0.9)", r.plan.utilization,
              0.01, 1);
  both.count("--redundant-experts", "Serving: copies of experts of a layer, all ranks together (0)",
             s.layout.redundant_experts);
}

void add_costs(CLI::App& app, PlanRequest& r, const PlanOptionParts& parts) {
  plan::StepTimeOptions& s = r.plan.step;
  Adder add(app, nullptr);
  const auto math = [&add](const char* name, const char* help, std::string& value) {
    add.text(name, help, "NAME", [&value](const std::string&, const std::string& text) {
      (void)parse_math_type(text);
      value = text;
    });
  };
  math("--math", "Products of attention, dense MLPs and shared experts: bf16, fp8, fp4 (as the weights)",
       r.math);
  math("--expert-math", "Products of routed experts: bf16, fp8, fp4 (as their weights)", r.expert_math);
  const auto payload = [&add](const char* name, const char* help, std::string& value) {
    add.text(name, help, "NAME", [&value](const std::string&, const std::string& text) {
      (void)row_bytes(text, 4096);
      value = text;
    });
  };
  payload("--dispatch-payload",
          "Rows to the experts: bfloat16, fp8_block128, nvfp4, ... (as the experts multiply)",
          s.dispatch_payload);
  payload("--combine-payload", "Rows back (bfloat16)", s.combine_payload);
  add.text("--path", "Of dispatch and combine: automatic, flat, hierarchical, rail_aligned (automatic)",
           "NAME", [&s](const std::string&, const std::string& text) { s.path = parse_exchange_path(text); });
  add.choice("--kernels", "What prices dispatch and combine (automatic)", s.kernels,
             plan::exchange_kernel_names());
  add.real("--imbalance", "Load of the busiest rank over the mean (1)", s.imbalance, 0, 1e9);
  add.real("--power-law", "Exponent of a power law of expert loads, instead of --imbalance", s.power_law, 0,
           10);
  add.text("--loads", "File with the load of each expert, instead of --imbalance; lines are summed", "FILE",
           [&r](const std::string&, const std::string& text) { r.loads = text; });
  app.add_flag(
      "--two-batches", s.two_batches,
      "Two microbatches in turn: one's exchange behind the other's computation (serving: halves of a batch; "
      "decode takes 2 sequences or more on each stage)");
  add.real("--overlap-tensor", "Share of tensor-parallel collectives that is hidden (0)", s.overlap_tensor, 0,
           1);
  add.real("--overlap-pipeline", "Share of transfers between stages that is hidden (0)", s.overlap_pipeline,
           0, 1);
  add.real("--matrix-efficiency", "Share of the dense rate that large products reach (0.75)",
           s.efficiency.matrix, 0.01, 1);
  add.real("--grouped-efficiency", "The same for products of experts (0.7)", s.efficiency.grouped_matrix,
           0.01, 1);
  add.real("--attention-efficiency", "The same for fused attention (0.6)", s.efficiency.attention, 0.01, 1);
  if (parts.whole)
    add.real("--gpu-memory-gib", "Memory of a GPU that may be used (all of it)", r.memory_gib, 0.001, 16384);
  app.add_option("--fit", r.fit, "Fit file of shunt calibrate (the one that comes with Shunt)")
      ->type_name("FILE");
  app.add_flag("--tiers", r.tiers, "No fits: dispatch and combine from bytes and rates");
}

void refuse_others(const Given& given, const char* phase, plan::Phase is) {
  if (given.empty()) return;
  throw Error(Errc::invalid_argument, fmt::format("{} {} for {}, this is --phase {}", fmt::join(given, ", "),
                                                  given.size() == 1 ? "is" : "are", phase,
                                                  plan::phase_names()[static_cast<std::size_t>(is)]));
}

}  // namespace

void add_plan_options(CLI::App& app, PlanRequest& r, const PlanOptionParts& parts) {
  app.add_option("--model", r.model,
                 "Preset, TOML file, Hugging Face config.json, or a directory that holds one")
      ->type_name("MODEL");
  add_cluster(app, r.cluster, "dgx-h100");
  Adder add(app, nullptr);
  add.choice("--phase", "What a step is (training)", r.plan.step.phase, plan::phase_names());
  if (parts.layout) add_layout(app, r.plan.step.layout);
  add_training(app, r, parts);
  add_serving(app, r, parts);
  add_costs(app, r, parts);
}

LoadedPlan load_plan(PlanRequest r) {
  plan::StepTimeOptions& s = r.plan.step;
  const plan::Phase phase = s.phase;
  if (phase != plan::Phase::training) refuse_others(r.training_only, "training", phase);
  if (phase != plan::Phase::prefill) refuse_others(r.prefill_only, "prefill", phase);
  if (phase != plan::Phase::decode) refuse_others(r.decode_only, "decode", phase);
  if (phase == plan::Phase::training) refuse_others(r.serving_only, "prefill and decode", phase);
  if (r.model.empty())
    throw Error(Errc::invalid_argument, "give --model: a preset, a TOML file or a config.json");
  LoadedPlan loaded;
  loaded.model = find_model(r.model, preset_directory());
  loaded.machine = cluster_of(r.cluster);
  if (phase != plan::Phase::training) {
    plan::use_published_formats(loaded.model, loaded.machine, s);
    const auto format = [](const std::string& text) {
      return static_cast<WeightFormat>(choose("--weights", text, weight_format_names()));
    };
    if (!r.weights.empty()) s.weights = format(r.weights);
    if (!r.expert_weights.empty()) s.expert_weights = format(r.expert_weights);
  }
  if (!r.math.empty()) s.math = parse_math_type(r.math);
  if (!r.expert_math.empty()) s.expert_math = parse_math_type(r.expert_math);
  if (s.imbalance != 1 && (s.power_law > 0 || !r.loads.empty()))
    throw Error(Errc::invalid_argument, "give one of --imbalance, --power-law and --loads");
  if (r.tiers && !r.fit.empty())
    throw Error(Errc::invalid_argument, "give --fit or --tiers, which uses no fit, not both");
  s.training.imbalance = s.imbalance;
  if (!r.loads.empty())
    for (const float load : plan::read_loads(r.loads)) s.expert_loads.push_back(static_cast<double>(load));
  if (r.memory_gib > 0) r.plan.capacity_bytes = static_cast<std::int64_t>(r.memory_gib * kGiB);
  loaded.options = r.plan;
  if (!r.tiers) {
    loaded.calibration =
        std::make_unique<Calibration>(read_calibration(r.fit.empty() ? default_calibration_path() : r.fit));
    loaded.fits = std::make_unique<CostModel>(*loaded.calibration, hardware_directory());
  }
  return loaded;
}

}  // namespace shunt::cli
