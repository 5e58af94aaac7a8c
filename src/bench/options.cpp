#include <shunt/bench/options.h>

#include <algorithm>
#include <cmath>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <shunt/cluster/model_shape.h>
#include <shunt/core/error.h>

namespace shunt::bench {
namespace {

constexpr std::int64_t kMaxTokens = 8192;

template <class... Args>
[[noreturn]] void refuse(fmt::format_string<Args...> text, Args&&... args) {
  throw Error(Errc::invalid_argument, fmt::format(text, std::forward<Args>(args)...));
}

void check_range(const char* option, std::int64_t value, std::int64_t min, std::int64_t max) {
  if (value < min || value > max) refuse("{} is {}; allowed: {} to {}", option, value, min, max);
}

std::vector<ModelShape> wanted_shapes(const AllToAllBenchOptions& options, const ModelDump* dump) {
  const bool sized = options.num_experts != 0 || options.top_k != 0 || options.hidden != 0 || dump != nullptr;
  std::vector<ModelShape> shapes;
  if (options.presets.empty() && sized) {
    ModelShape custom;
    custom.name = "custom";
    if (dump != nullptr) {
      custom.num_experts = dump->routing.num_experts;
      custom.top_k = dump->routing.top_k;
      custom.hidden = dump->hidden;
    }
    shapes.push_back(custom);
  } else {
    const std::vector<std::string> names =
        options.presets.empty() ? std::vector<std::string>{"v2-lite", "r1"} : options.presets;
    for (const std::string& name : names) shapes.push_back(find_model_shape(name, preset_directory()));
  }
  for (ModelShape& shape : shapes) {
    if (options.num_experts != 0) shape.num_experts = options.num_experts;
    if (options.top_k != 0) shape.top_k = options.top_k;
    if (options.hidden != 0) shape.hidden = options.hidden;
    if (shape.num_experts == 0 || shape.top_k == 0 || shape.hidden == 0)
      refuse(
          "without --preset, all of --experts, --topk and --hidden are needed; given: {} experts, top-{}, "
          "hidden {}",
          shape.num_experts, shape.top_k, shape.hidden);
    check_range("--experts", shape.num_experts, 1, 1 << 20);
    if (shape.top_k < 1 || shape.top_k > shape.num_experts)
      refuse("--topk is {}; allowed: 1 to the number of experts, {}", shape.top_k, shape.num_experts);
    check_range("--hidden", shape.hidden, 1, std::int64_t{1} << 24);
  }
  return shapes;
}

void check_transport(const std::string& transport) {
  if (transport == "auto") return;
  const auto registry = transport_registry();
  const auto found = std::find_if(registry.begin(), registry.end(),
                                  [&](const TransportInfo& info) { return info.name == transport; });
  if (found == registry.end()) {
    std::vector<std::string> names{"auto"};
    for (const TransportInfo& info : registry) names.push_back(info.name);
    refuse("--transport: \"{}\" is not a transport; allowed: {}", transport, fmt::join(names, ", "));
  }
  if (!found->available)
    throw Error(Errc::unavailable,
                fmt::format("--transport {} cannot run here: {}", found->name, found->reason));
}

}  // namespace

std::vector<std::int64_t> parse_token_counts(std::string_view text) {
  std::vector<std::int64_t> counts;
  for (const std::string& part : split_list("--tokens", text))
    counts.push_back(parse_whole("--tokens", part, 1, kMaxTokens));
  return counts;
}

RowLayout parse_layout(std::string_view text) {
  if (text == "packed") return RowLayout::packed;
  if (text == "padded") return RowLayout::padded;
  refuse("--layout: \"{}\" is not a layout; allowed: packed, padded", text);
}

std::vector<Point> expand_points(AllToAllBenchOptions& options, const ModelDump* dump,
                                 std::int32_t job_ranks) {
  if (options.ranks == 0) options.ranks = job_ranks > 0 ? job_ranks : 2;
  check_range("--ranks", options.ranks, 1, 1024);
  if (options.nodes < 1 || options.ranks % options.nodes != 0)
    refuse("--nodes is {}; allowed: a divisor of the number of ranks, {}", options.nodes, options.ranks);
  if (options.dp_size < 1 || options.ranks % options.dp_size != 0)
    refuse("--dp-size is {}; allowed: a divisor of the number of ranks, {}", options.dp_size, options.ranks);
  if (is_fp8(options.out_dtype))
    refuse("--out-dtype is {}; allowed: bfloat16, float16, float32", dtype_name(options.out_dtype));
  check_range("--alignment", options.alignment, 1, 4096);
  check_range("--max-recv-rows", options.max_recv_rows, -1, std::int64_t{1} << 40);
  if (options.max_recv_rows >= 0 && options.layout == RowLayout::padded)
    refuse("--max-recv-rows is {} with --layout padded; allowed: with --layout packed only",
           options.max_recv_rows);
  check_range("--rounds", options.rounds, 1, 100'000);
  check_range("--warmup", options.warmup, 0, 1'000'000);
  check_range("--iterations", options.iterations, 0, 1'000'000);
  check_range("--deadline", options.deadline_ms, 1, 86'400'000);
  if (options.tokens.empty()) refuse("--tokens is empty; allowed: whole numbers from 1 to {}", kMaxTokens);
  for (const std::int64_t tokens : options.tokens) check_range("--tokens", tokens, 1, kMaxTokens);

  check_transport(options.transport);

  std::vector<Point> points;
  for (const ModelShape& shape : wanted_shapes(options, dump)) {
    const std::size_t routings = dump != nullptr ? 1 : options.routings.size();
    for (std::size_t i = 0; i < routings; ++i)
      for (const std::int64_t tokens : options.tokens) {
        Point point;
        point.preset = shape.name;
        point.num_experts = shape.num_experts;
        point.top_k = shape.top_k;
        point.hidden = shape.hidden;
        point.tokens = tokens;
        point.ranks = options.ranks;
        point.dp_size = options.dp_size;
        point.in_dtype = options.in_dtype;
        point.out_dtype = options.out_dtype;
        point.seed = options.seed;
        if (dump == nullptr) {
          point.routing = parse_routing(options.routings[i]);
          point.routing_label = routing_name(point.routing);
        } else {
          point.routing_label = "input:" + options.input;
        }
        points.push_back(point);
      }
  }
  return points;
}

std::vector<MethodSpec> select_methods(const AllToAllBenchOptions& options) {
  std::vector<MethodSpec> selected;
  for (const MethodSpec& spec : options.registry) {
    const bool named =
        std::find(options.methods.begin(), options.methods.end(), spec.name) != options.methods.end();
    if (!named && !options.methods.empty() && !(options.peers && spec.opens_sockets)) continue;
    selected.push_back(spec);
    selected.back().asked_for = named;
    std::string& reason = selected.back().unavailable;
    if (!reason.empty()) continue;
    if (spec.opens_sockets && !named && !options.peers)
      reason = "opens sockets: name it in --methods or give --peers";
    else if (spec.look)
      reason = spec.look();
  }
  for (const std::string& name : options.methods) {
    if (std::any_of(selected.begin(), selected.end(),
                    [&](const MethodSpec& spec) { return spec.name == name; }))
      continue;
    std::vector<std::string> names;
    for (const MethodSpec& spec : options.registry)
      if (names.empty() || names.back() != spec.name) names.push_back(spec.name);
    refuse("--methods: \"{}\" is not a method; allowed: {}", name, fmt::join(names, ", "));
  }
  return selected;
}

}  // namespace shunt::bench
