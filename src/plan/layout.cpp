#include <shunt/plan/layout.h>

#include <numeric>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <shunt/core/error.h>

namespace shunt::plan {
namespace {

constexpr std::int64_t kMaxParallel = 1 << 16;
constexpr std::int64_t kMaxWorld = 1 << 22;

[[noreturn]] void refuse(const std::string& why) {
  throw Error(Errc::invalid_argument, why);
}

void in_range(const char* name, std::int64_t value, std::int64_t low, std::int64_t high) {
  if (value < low || value > high)
    refuse(fmt::format("{} {}: expected a number in [{}, {}]", name, value, low, high));
}

void divides(const char* name, std::int64_t value, const char* what, std::int64_t whole,
             const ModelSpec& model) {
  if (whole % value != 0)
    refuse(fmt::format("{} {} does not divide the {} {} of {}", name, value, whole, what, model.name));
}

void check_tensor(const Layout& layout, const ModelSpec& model) {
  divides("tp", layout.tp, "attention heads", model.attention.heads, model);
  const std::int64_t kv = model.attention.kv_heads;
  if (model.attention.kind == AttentionKind::grouped && kv % layout.tp != 0 && layout.tp % kv != 0) {
    refuse(fmt::format("tp {} neither divides the {} key and value heads of {} nor is a multiple of them",
                       layout.tp, kv, model.name));
  }
  for (const LayerSpec& layer : model.layers) {
    if (layer.attention != LayerAttention::linear) continue;
    divides("tp", layout.tp, "linear attention key heads", model.linear.key_heads, model);
    divides("tp", layout.tp, "linear attention value heads", model.linear.value_heads, model);
    break;
  }
  if (model.dense_layers() > 0)
    divides("tp", layout.tp, "columns of the dense MLP", model.dense_intermediate, model);
  if (model.shared_intermediate > 0)
    divides("tp", layout.tp, "columns of the shared experts", model.shared_intermediate, model);
}

void check_experts(const Layout& layout, const ModelSpec& model) {
  if (model.experts == 0) {
    if (layout.ep != 1)
      refuse(fmt::format("ep {}: {} has no experts, so ep must be 1", layout.ep, model.name));
    if (layout.redundant_experts != 0)
      refuse(fmt::format("{} redundant experts: {} has no experts", layout.redundant_experts, model.name));
    return;
  }
  in_range("redundant experts", layout.redundant_experts, 0, 1 << 16);
  const std::int64_t slots = model.experts + layout.redundant_experts;
  if (slots % layout.ep != 0) {
    refuse(
        layout.redundant_experts == 0
            ? fmt::format(
                  "ep {} does not divide the {} experts of {}; {} redundant experts would make it {} on each",
                  layout.ep, model.experts, model.name, layout.ep - slots % layout.ep, slots / layout.ep + 1)
            : fmt::format("ep {} does not divide the {} experts of {} and {} redundant ones, {} in all",
                          layout.ep, model.experts, model.name, layout.redundant_experts, slots));
  }
  if (slots / layout.ep > model.experts) {
    refuse(
        fmt::format("{} redundant experts: {} places on each of {} ranks are more than the {} experts of {}",
                    layout.redundant_experts, slots / layout.ep, layout.ep, model.experts, model.name));
  }
  divides("etp", layout.etp, "columns of one expert", model.expert_intermediate, model);
  const std::int64_t ranks = layout.tp * layout.cp * layout.dp;
  if (ranks % (layout.etp * layout.ep) != 0) {
    refuse(fmt::format("etp {} * ep {} = {} does not divide tp {} * cp {} * dp {} = {} ranks of a stage",
                       layout.etp, layout.ep, layout.etp * layout.ep, layout.tp, layout.cp, layout.dp,
                       ranks));
  }
}

void place_layers(Layout& layout, const ModelSpec& model) {
  const auto layers = static_cast<std::int64_t>(model.layers.size());
  if (layout.pp > layers) refuse(fmt::format("pp {}: {} has only {} layers", layout.pp, model.name, layers));
  if (layout.stage_layers.empty()) {
    for (std::int64_t stage = 0; stage < layout.pp; ++stage)
      layout.stage_layers.push_back(layers / layout.pp + (stage < layers % layout.pp ? 1 : 0));
    return;
  }
  const auto& stages = layout.stage_layers;
  if (static_cast<std::int64_t>(stages.size()) != layout.pp) {
    refuse(fmt::format("stage layers {}: {} numbers for pp {}", fmt::join(stages, ","), stages.size(),
                       layout.pp));
  }
  for (const std::int64_t count : stages) in_range("layers of a stage", count, 1, layers);
  const std::int64_t sum = std::accumulate(stages.begin(), stages.end(), std::int64_t{0});
  if (sum != layers) {
    refuse(fmt::format("stage layers {} sum to {}, but {} has {} layers", fmt::join(stages, ","), sum,
                       model.name, layers));
  }
}

}  // namespace

Layout resolve(Layout layout, const ModelSpec& model) {
  in_range("tp", layout.tp, 1, kMaxParallel);
  in_range("pp", layout.pp, 1, kMaxParallel);
  in_range("ep", layout.ep, 1, kMaxParallel);
  in_range("dp", layout.dp, 1, kMaxParallel);
  in_range("cp", layout.cp, 1, kMaxParallel);
  in_range("etp", layout.etp, 0, kMaxParallel);
  // Sixteen bits each: four factors may not overflow before they are compared.
  if (layout.tp * layout.cp > kMaxWorld || layout.dp * layout.pp > kMaxWorld || layout.world() > kMaxWorld) {
    refuse(fmt::format("tp {} * cp {} * dp {} * pp {} is more than {} GPUs", layout.tp, layout.cp, layout.dp,
                       layout.pp, kMaxWorld));
  }
  if (layout.etp == 0) layout.etp = layout.ep == 1 ? layout.tp : 1;
  check_tensor(layout, model);
  check_experts(layout, model);
  place_layers(layout, model);
  return layout;
}

}  // namespace shunt::plan
