#include <algorithm>
#include <functional>
#include <memory>
#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <CLI/CLI.hpp>

#include <shunt/cluster/hardware.h>
#include <shunt/cluster/model.h>
#include <shunt/cluster/model_shape.h>
#include <shunt/core/error.h>
#include <shunt/plan/memory.h>

#include "add_option.h"
#include "plan.h"

namespace shunt::cli {
namespace {

constexpr double kGiB = 1024.0 * 1024 * 1024;
constexpr double kMiB = 1024.0 * 1024;
constexpr std::int64_t kMany = std::int64_t{1} << 40;

struct Options {
  plan::MemoryOptions memory;
  std::string model;
  std::string gpu;
  double gpu_gib = 0;
  std::int64_t world = 0;
  std::string weights;
  std::string expert_weights;
  std::vector<std::string> training_only;  ///< Options given that only one mode reads
  std::vector<std::string> serving_only;
  plan::Format format = plan::Format::text;
};

template <class T>
void add_choice(CLI::App& app, const std::string& name, const std::string& help, T& value,
                const std::vector<std::string>& names, std::vector<std::string>& given) {
  add_text(app, name, fmt::format("{}: {}", help, fmt::join(names, ", ")), "NAME",
           [&value, &names, &given](const std::string& option, const std::string& text) {
             value = static_cast<T>(choose(option, text, names));
             given.push_back(option);
           });
}

void add_count(CLI::App& app, const std::string& name, const std::string& help, std::int64_t& value,
               std::vector<std::string>& given) {
  add_text(app, name, help, "N", [&value, &given](const std::string& option, const std::string& text) {
    value = parse_whole(option, text, 0, kMany);
    given.push_back(option);
  });
}

void add_real(CLI::App& app, const std::string& name, const std::string& help, double min, double max,
              const std::function<void(double)>& set) {
  add_text(app, name, help, "X", [min, max, set](const std::string& option, const std::string& text) {
    set(parse_number(option, text, min, max));
  });
}

void add_switch(CLI::App& app, const std::string& name, const std::string& help,
                const std::function<void()>& set, std::vector<std::string>& given) {
  app.add_flag_callback(
      name,
      [name, set, &given] {
        set();
        given.push_back(name);
      },
      help);
}

void set_recomputed_part(const std::string& name, plan::RecomputeParts& parts) {
  const std::vector<std::pair<std::string, bool*>> all = {
      {"core_attn", &parts.attention_scores}, {"layernorm", &parts.norms}, {"activation", &parts.activations},
      {"mla_up_proj", &parts.latent_queries}, {"mlp", &parts.mlp},         {"moe", &parts.moe}};
  std::vector<std::string> names;
  for (const auto& [known, flag] : all) names.push_back(known);
  *all[choose("--recompute-modules", name, names)].second = true;
}

void add_layout(CLI::App& app, Options& o) {
  plan::Layout& layout = o.memory.layout;
  const auto add = [&app](const char* name, const char* help, std::int64_t& value) {
    add_whole(app, name, help, value, 1, 1 << 16);
  };
  add("--tp", "Tensor parallel", layout.tp);
  add("--pp", "Pipeline stages", layout.pp);
  add("--ep", "Expert parallel; ep * etp divides tp * cp * dp", layout.ep);
  add("--dp", "Data parallel", layout.dp);
  add("--cp", "Context parallel, for training", layout.cp);
  add("--etp", "Tensor parallel of the experts (tp where ep is 1, else 1)", layout.etp);
  add_whole(app, "--world", "GPUs that tp * cp * dp * pp must come to", o.world, 1, 1 << 22);
  add_text(app, "--stage-layers", "Layers of each stage (evenly)", "N,...",
           [&layout](const std::string& option, const std::string& text) {
             layout.stage_layers.clear();
             for (const std::string& part : split_list(option, text))
               layout.stage_layers.push_back(parse_whole(option, part, 1, 1 << 20));
           });
}

void add_training(CLI::App& app, Options& o) {
  plan::TrainingOptions& t = o.memory.training;
  std::vector<std::string>& given = o.training_only;
  add_count(app, "--micro-batch", "Sequences of a microbatch (1)", t.micro_batch, given);
  add_count(app, "--microbatches", "Microbatches of a step on each data-parallel rank (pp)", t.microbatches,
            given);
  add_count(app, "--sequence", "Tokens of a sequence (4096)", t.sequence, given);
  add_count(app, "--zero", "0 to 3: what data-parallel ranks divide among themselves (1: optimizer states)",
            t.zero, given);
  add_count(app, "--gradient-bytes", "2 or 4 (4)", t.gradient_bytes, given);
  add_choice(app, "--optimizer", "Optimizer states (adam)", t.optimizer, plan::optimizer_names(), given);
  add_choice(app, "--schedule", "Pipeline schedule (1f1b)", t.schedule, plan::schedule_names(), given);
  add_count(app, "--chunks", "Model chunks of a stage, for interleaved", t.chunks, given);
  add_choice(app, "--recompute", "What the backward pass computes again (none)", t.recompute,
             plan::recompute_names(), given);
  add_text(app, "--recompute-modules",
           "With selective: core_attn, layernorm, activation, mla_up_proj, mlp, moe (core_attn)", "NAME,...",
           [&t, &given](const std::string& option, const std::string& text) {
             t.parts = {false};
             for (const std::string& part : split_list(option, text)) set_recomputed_part(part, t.parts);
             given.push_back(option);
           });
  add_switch(
      app, "--no-sequence-parallel", "Norms and dropout whole on every tensor-parallel rank",
      [&t] { t.sequence_parallel = false; }, given);
  add_switch(
      app, "--unfused-attention", "Attention scores are stored", [&t] { t.flash_attention = false; }, given);
  add_switch(
      app, "--dropout", "With dropout masks", [&t] { t.dropout = true; }, given);
}

void add_serving(CLI::App& app, Options& o) {
  plan::ServingOptions& s = o.memory.inference;
  std::vector<std::string>& given = o.serving_only;
  const auto format = [&app, &given](const char* name, const char* help, std::string& value) {
    add_text(app, name, fmt::format("{}: {}", help, fmt::join(weight_format_names(), ", ")), "NAME",
             [&value, &given](const std::string& option, const std::string& text) {
               (void)choose(option, text, weight_format_names());
               value = text;
               given.push_back(option);
             });
  };
  format("--weights", "Attention, dense MLPs and shared experts (as published)", o.weights);
  format("--expert-weights", "Routed experts (as --weights where given, else as published)",
         o.expert_weights);
  add_text(app, "--kv-dtype", "bf16 or fp8 (bf16)", "NAME",
           [&s, &given](const std::string& option, const std::string& text) {
             s.kv_element_bytes = choose(option, text, {"bf16", "fp8"}) == 0 ? 2 : 1;
             given.push_back(option);
           });
  add_count(app, "--kv-block", "Tokens of a KV cache block (16)", s.kv_block, given);
  add_count(app, "--max-seqs", "Sequences at once on each data-parallel rank (256)", s.max_sequences, given);
  add_count(app, "--max-len", "Tokens of a sequence (8192)", s.max_length, given);
  add_count(app, "--batch-tokens", "Tokens of one pass on each data-parallel rank (8192)", s.batch_tokens,
            given);
  add_real(app, "--gpu-util", "Share of the GPU's memory that may be used (0.9)", 0.01, 1.0,
           [&s, &given](double x) {
             s.utilization = x;
             given.emplace_back("--gpu-util");
           });
  add_choice(app, "--all-to-all", "Buffers of dispatch and combine (nccl)", s.all_to_all,
             plan::all_to_all_names(), given);
  add_count(app, "--dispatch-tokens", "Most tokens of a rank in one step, for deepep-ll, pplx, shunt (128)",
            s.dispatch_tokens, given);
  add_count(app, "--redundant-experts", "Copies of experts of a layer, all ranks together",
            o.memory.layout.redundant_experts, given);
}

void add_common(CLI::App& app, Options& o) {
  app.add_option("--model", o.model,
                 "Preset, TOML file, Hugging Face config.json, or a directory that holds one")
      ->type_name("MODEL")
      ->required();
  add_text(app, "--mode", "training or serving (training)", "NAME",
           [&o](const std::string& option, const std::string& text) {
             o.memory.serving = choose(option, text, {"training", "serving"}) == 1;
           });
  app.add_option("--gpu", o.gpu, "GPU preset whose memory it must fit, or a path that ends in .toml")
      ->type_name("NAME");
  add_real(app, "--gpu-memory-gib", "Memory of a GPU, instead of --gpu", 0.001, 16384,
           [&o](double x) { o.gpu_gib = x; });
  add_real(app, "--imbalance", "Rows of the busiest rank over the mean, or the capacity factor (1)", 0, 1e9,
           [&o](double x) { o.memory.training.imbalance = o.memory.inference.imbalance = x; });
  app.add_flag_callback(
      "--mtp", [&o] { o.memory.training.mtp = o.memory.inference.mtp = true; },
      "With the multi-token prediction modules, on the last stage");
  add_real(app, "--library-mib", "NCCL and the like, on more than one GPU (373.8)", 0, 1e6,
           [&o](double x) { o.memory.library_bytes = x * kMiB; });
  add_real(app, "--other-gib", "Context and kernels (training 1, serving 3.5)", 0, 1e3,
           [&o](double x) { o.memory.other_bytes = x * kGiB; });
  add_real(app, "--fragmentation", "Margin on what is allocated and freed while it runs (0.05)", 0, 1,
           [&o](double x) { o.memory.fragmentation = x; });
  add_format(app, o.format);
}

/// What options of the other mode would do is nothing, which nobody who gives one expects.
void refuse_other_mode(const Options& o) {
  const auto& given = o.memory.serving ? o.training_only : o.serving_only;
  if (!given.empty())
    throw Error(Errc::invalid_argument,
                fmt::format("{} {} for {}, this is --mode {}", fmt::join(given, ", "),
                            given.size() == 1 ? "is" : "are", o.memory.serving ? "training" : "serving",
                            o.memory.serving ? "serving" : "training"));
}

int run(Options o) {
  refuse_other_mode(o);
  const auto& serving = o.serving_only;
  if (o.memory.serving && std::find(serving.begin(), serving.end(), "--dispatch-tokens") != serving.end() &&
      (o.memory.inference.all_to_all == plan::AllToAll::nccl ||
       o.memory.inference.all_to_all == plan::AllToAll::none))
    throw Error(Errc::invalid_argument,
                "--dispatch-tokens is for --all-to-all deepep-ll, pplx and shunt only");
  const auto& training = o.training_only;
  if (o.memory.training.recompute != plan::Recompute::selective &&
      std::find(training.begin(), training.end(), "--recompute-modules") != training.end())
    throw Error(Errc::invalid_argument, "--recompute-modules is for --recompute selective only");
  if (!o.gpu.empty() && o.gpu_gib > 0)
    throw Error(Errc::invalid_argument, "give --gpu or --gpu-memory-gib, not both");
  const ModelSpec model = find_model(o.model, preset_directory());
  std::string gpu_name;
  if (!o.gpu.empty()) {
    const GpuSpec gpu = find_gpu(o.gpu, hardware_directory());
    gpu_name = gpu.name;
    o.memory.capacity_bytes = gpu.memory_bytes;
  } else if (o.gpu_gib > 0) {
    o.memory.capacity_bytes = static_cast<std::int64_t>(o.gpu_gib * kGiB);
  }
  const auto format = [](const std::string& text) {
    return static_cast<WeightFormat>(choose("--weights", text, weight_format_names()));
  };
  plan::ServingOptions& s = o.memory.inference;
  s.weights = o.weights.empty() ? model.weights : format(o.weights);
  s.expert_weights = !o.expert_weights.empty() ? format(o.expert_weights)
                     : !o.weights.empty()      ? s.weights
                                               : model.expert_weights;
  const plan::Layout& layout = o.memory.layout;
  if (o.world > 0 && o.world != layout.world())
    throw Error(Errc::invalid_argument,
                fmt::format("--world {}: tp {} * cp {} * dp {} * pp {} is {}", o.world, layout.tp, layout.cp,
                            layout.dp, layout.pp, layout.world()));
  print_report(plan::report_memory(model, plan::plan_memory(model, o.memory), gpu_name), o.format);
  return 0;
}

}  // namespace

void add_plan_memory(CLI::App& parent, Command& command) {
  const auto options = std::make_shared<Options>();
  CLI::App* app = parent.add_subcommand(
      "memory", "What one GPU of every pipeline stage must hold, part by part, for training or serving");
  add_common(*app, *options);
  add_layout(*app, *options);
  add_training(*app, *options);
  add_serving(*app, *options);
  app->callback([&command, options] { command = [options] { return run(*options); }; });
}

}  // namespace shunt::cli
