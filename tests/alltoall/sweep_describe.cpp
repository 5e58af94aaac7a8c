#include <algorithm>
#include <sstream>

#include <alltoall/sweep_case.h>

namespace sweep {
namespace {

const char* name(shunt::ScaleType type) {
  return type == shunt::ScaleType::none ? "none" : type == shunt::ScaleType::f32 ? "f32" : "ue8m0";
}
const char* name(shunt::RowLayout layout) {
  return layout == shunt::RowLayout::padded ? "padded" : "packed";
}
const char* name(shunt::PaddingRows padding) {
  return padding == shunt::PaddingRows::untouched ? "untouched"
         : padding == shunt::PaddingRows::zero    ? "zero"
                                                  : "poison";
}
const char* name(shunt::Delivery delivery) {
  return delivery == shunt::Delivery::rows ? "rows" : "view";
}
const char* name(shunt::Path path) {
  return path == shunt::Path::automatic ? "automatic" : path == shunt::Path::flat ? "flat" : "hierarchical";
}
const char* name(shunt::Movement movement) {
  return movement == shunt::Movement::automatic        ? "automatic"
         : movement == shunt::Movement::pull           ? "pull"
         : movement == shunt::Movement::push_streaming ? "push_streaming"
                                                       : "push";
}

}  // namespace

std::string describe(const ObjectPlan& object) {
  const auto& c = object.config;
  std::ostringstream text;
  text << "ranks " << object.num_ranks << ", dp_size " << c.dp_size << ", experts " << c.num_experts
       << ", top_k " << c.top_k << ", hidden " << c.hidden << ", max_tokens " << c.max_tokens << ", "
       << dtype_name(c.token_dtype) << " -> " << dtype_name(c.payload) << " scale " << name(c.scale) << "/"
       << c.scale_block << ", experts give " << dtype_name(c.expert_dtype) << ", out "
       << dtype_name(c.out_dtype) << ", " << name(c.layout) << " alignment " << c.alignment
       << ", padding rows " << name(c.padding) << ", " << name(c.delivery) << ", " << name(c.movement)
       << ", path " << name(c.path) << ", max_recv_rows " << c.max_recv_rows
       << (c.check_messages ? ", check_messages" : "") << (c.check_replicas ? ", check_replicas" : "");
  return text.str();
}

std::vector<std::string> features(const SweepCase& what) {
  std::vector<std::string> found;
  const auto note = [&found](const std::string& dimension, const auto& value) {
    std::ostringstream text;
    text << dimension << "=" << value;
    found.push_back(text.str());
  };
  const auto note_if = [&found](bool present, const char* feature) {
    if (present) found.emplace_back(feature);
  };
  note("ranks", what.num_ranks);
  note("objects in flight", what.objects.size());
  note_if(what.delayed, "repeated under random delays");
  const bool crosses = what.nodes > 1 || what.alone;
  note_if(crosses, "repeated across nodes");
  note_if(crosses && what.delayed, "repeated across nodes under random delays");
  if (crosses) note("nodes", what.alone ? what.num_ranks : what.nodes);
  for (const auto& object : what.objects) {
    const auto& c = object.config;
    const std::int32_t fewest = c.num_experts / object.num_ranks;
    note("dp_size", c.dp_size);
    note_if(c.dp_size == object.num_ranks && c.dp_size > 1, "dp_size = R > 1");
    note_if(c.num_experts % object.num_ranks != 0, "E % R != 0");
    note_if(c.num_experts < object.num_ranks, "E < R");
    note_if(c.top_k == c.num_experts && c.top_k > 1, "K = E > 1");
    note_if(c.top_k > fewest, "K > experts of some rank");
    note_if(c.hidden == 1, "H = 1");
    note_if(c.hidden % 2 == 1 && c.hidden > 1, "H odd > 1");
    note_if(c.hidden > 1024, "H > 1024");
    note_if(c.max_tokens > 64, "max_tokens > 64");
    note_if(c.max_tokens == 0, "max_tokens = 0");
    note_if(c.alignment > 1, "alignment > 1");
    note("layout", name(c.layout));
    note("padding rows", name(c.padding));
    note("delivery", name(c.delivery));
    note("movement", name(c.movement));
    if (crosses) note("path", name(c.path));
    note_if(crosses && c.check_messages, "check_messages");
    const bool same = c.token_dtype == c.payload;
    note("tokens",
         std::string(dtype_name(c.token_dtype)) +
             (same ? "" : std::string(" quantised to ") + dtype_name(c.payload)) +
             (c.scale == shunt::ScaleType::none ? "" : std::string(" with scales ") + name(c.scale)));
    note("experts and out", std::string(dtype_name(c.expert_dtype)) + " and " + dtype_name(c.out_dtype));
    note_if(c.scale != shunt::ScaleType::none && c.hidden % c.scale_block != 0, "short last scale block");
    note_if(c.max_recv_rows >= 0, "max_recv_rows");
    note_if(c.counts_by_group, "counts_by_group");
    note_if(c.record_waits, "record_waits");
    note_if(c.check_replicas, "check_replicas");
    note("steps", object.steps.size());
    const auto any = [&](const char* feature, auto&& has) {
      note_if(std::any_of(object.steps.begin(), object.steps.end(), has), feature);
    };
    any("a step that overflows", [](const StepPlan& s) { return s.outcome == Outcome::overflow; });
    any("a step with unequal replicas",
        [](const StepPlan& s) { return s.outcome == Outcome::replicas_differ; });
    any("masked ids", [](const StepPlan& s) { return s.mask_share > 0 && s.mask_share < 1; });
    any("all ids masked", [](const StepPlan& s) { return s.mask_share == 1; });
    any("a group without tokens",
        [](const StepPlan& s) { return std::count(s.live.begin(), s.live.end(), 0) > 0; });
    any("uneven tokens", [](const StepPlan& s) {
      return *std::max_element(s.live.begin(), s.live.end()) !=
             *std::min_element(s.live.begin(), s.live.end());
    });
    any("live_tokens", [](const StepPlan& s) { return s.use_live_tokens; });
    any("int64 ids", [](const StepPlan& s) { return s.ids_64; });
    any("int32 ids", [](const StepPlan& s) { return !s.ids_64; });
    any("tokens in token_buffer()", [](const StepPlan& s) { return s.tokens_in_place; });
    any("tokens elsewhere", [](const StepPlan& s) { return !s.tokens_in_place; });
    any("results in expert_output()", [](const StepPlan& s) { return s.outputs_in_place; });
    any("results elsewhere", [](const StepPlan& s) { return !s.outputs_in_place; });
    any("accumulate", [](const StepPlan& s) { return s.accumulate; });
    any("NaN and infinities", [](const StepPlan& s) { return s.any_bits; });
    any("strided rows", [](const StepPlan& s) { return s.strided; });
    any("all to one", [](const StepPlan& s) { return s.popularity == Popularity::all_to_one; });
  }
  std::sort(found.begin(), found.end());
  found.erase(std::unique(found.begin(), found.end()), found.end());
  return found;
}

}  // namespace sweep
