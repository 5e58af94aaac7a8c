#include "agreement.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <map>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <shunt/bench/verify.h>
#include <shunt/core/host.h>
#include <shunt/core/record.h>
#include <shunt/transport/collectives.h>

namespace shunt::bench {
namespace {

constexpr std::size_t kText = 600;
using Text = std::array<char, kText>;

Text as_text(const std::string& text) {
  Text bytes{};
  text.copy(bytes.data(), kText - 1);
  return bytes;
}

std::uint64_t hash_text(std::string_view text) {
  return hash_bytes(text.data(), static_cast<std::int64_t>(text.size()));
}

template <class T>
std::uint64_t hash_all(const std::vector<T>& values) {
  return hash_bytes(values.data(), static_cast<std::int64_t>(values.size() * sizeof(T)));
}

/// One rank's part of a gather whose parts may be long.
template <class T>
std::vector<T> gather(Transport& transport, const std::vector<T>& mine, std::chrono::milliseconds deadline) {
  static_assert(std::is_trivially_copyable_v<T>);
  const auto bytes = static_cast<std::int64_t>(mine.size() * sizeof(T));
  std::vector<T> all(mine.size() * static_cast<std::size_t>(transport.world().size));
  const auto collectives = transport.make_collectives(bytes, Clock::now() + deadline);
  collectives->allgather(mine.data(), bytes, all.data(), deadline);
  return all;
}

struct PointNote {
  double max_seconds = 0;
  std::int64_t begin_ns = 0;
  PlacementThresholds thresholds;
  std::int64_t available_bytes = -1;
  std::uint64_t domain = 0;
  std::uint64_t routing = 0;
  Errc code = Errc::internal;
  Text refusal{};
};

std::uint64_t hash_routing(const Workload& workload) {
  std::uint64_t hash = 0;
  for (std::int32_t group = 0; group < workload.num_groups(); ++group) {
    const Routing& routing = workload.routing(group);
    const std::uint64_t parts[] = {hash, hash_all(routing.ids), hash_all(routing.weights)};
    hash = hash_bytes(parts, sizeof parts);
  }
  return hash;
}

/// What all ranks together may take, if each takes the same: -1 where that is not known.
std::int64_t shared_budget(const std::vector<PointNote>& notes) {
  struct Host {
    std::int64_t available = -1;
    std::int64_t ranks = 0;
  };
  std::map<std::uint64_t, Host> hosts;
  for (const PointNote& note : notes) {
    Host& host = hosts[note.domain];
    ++host.ranks;
    if (note.available_bytes >= 0 && (host.available < 0 || note.available_bytes < host.available))
      host.available = note.available_bytes;
  }
  std::int64_t least = -1;
  for (const auto& [domain, host] : hosts)
    if (host.available >= 0 && (least < 0 || host.available / host.ranks < least))
      least = host.available / host.ranks;
  return least < 0 ? -1 : least * static_cast<std::int64_t>(notes.size());
}

/// What a method may say about this world, and the ranks' own reasons, joined: the first rank's reason counts.
std::vector<std::string> gather_reasons(Transport& transport, const std::vector<MethodSpec>& specs,
                                        std::chrono::milliseconds deadline) {
  std::vector<Text> mine;
  for (const MethodSpec& spec : specs) {
    std::string reason = spec.unavailable;
    if (reason.empty() && spec.unsuited) reason = spec.unsuited(transport);
    if (reason.empty() && spec.only_if_asked && !spec.asked_for) reason = spec.only_if_asked(transport);
    mine.push_back(as_text(reason));
  }
  const std::vector<Text> all = gather(transport, mine, deadline);
  std::vector<std::string> reasons(specs.size());
  for (std::size_t i = 0; i < all.size(); ++i)
    if (std::string& reason = reasons[i % specs.size()]; reason.empty()) reason = all[i].data();
  return reasons;
}

}  // namespace

std::uint64_t clock_domain() {
  std::string domain = boot_id();
  char space[64] = {};
  if (readlink("/proc/self/ns/time", space, sizeof space - 1) > 0) domain += space;
  // Where neither can be read, host names are the best there is.
  if (domain.empty()) {
    gethostname(space, sizeof space - 1);
    domain = space;
  }
  return hash_text(domain);
}

std::vector<OptionHash> hash_options(const AllToAllBenchOptions& options, const std::vector<Point>& points,
                                     const std::vector<MethodSpec>& specs, const ModelDump* dump) {
  std::string shapes;
  std::string tokens;
  std::string routings;
  for (const Point& point : points) {
    shapes += fmt::format("{} {} {} {};", point.preset, point.num_experts, point.top_k, point.hidden);
    tokens += fmt::format("{} ", point.tokens);
    routings += point.routing_label + " ";
  }
  std::string methods;
  for (const MethodSpec& spec : specs) methods += spec.name + " " + spec.variant + ";";
  std::vector<std::uint64_t> input;
  if (dump != nullptr)
    input = {hash_all(dump->routing.ids), hash_all(dump->routing.weights), hash_all(dump->x)};
  const auto text = [](const auto&... values) {
    std::string joined;
    ((joined += fmt::format("{} ", values)), ...);
    return hash_text(joined);
  };
  return {{"program (version and git revision)", text(version(), git_revision())},
          {"number of ranks", text(options.ranks)},
          {"--nodes", text(options.nodes)},
          {"--preset, --experts, --topk or --hidden", hash_text(shapes)},
          {"--tokens", hash_text(tokens)},
          {"--dp-size", text(options.dp_size)},
          {"--in-dtype", text(dtype_name(options.in_dtype))},
          {"--out-dtype", text(dtype_name(options.out_dtype))},
          {"--device, --cold, --graph, --launch or --max-blocks",
           text(options.device, options.cold, options.graph, options.gate, options.max_blocks)},
          {"--transport", text(options.transport)},
          {"--provider", text(options.provider)},
          {"--layout", text(static_cast<int>(options.layout))},
          {"--alignment", text(options.alignment)},
          {"--max-recv-rows", text(options.max_recv_rows)},
          {"--routing", hash_text(routings)},
          {"--input", hash_all(input)},
          {"--methods", hash_text(methods)},
          {"--warmup", text(options.warmup)},
          {"--iterations", text(options.iterations)},
          {"--rounds", text(options.rounds)},
          {"--max-seconds", text(options.max_seconds)},
          {"--seed", text(options.seed)},
          {"--deadline", text(options.deadline_ms)},
          {"--inner-phases", text(options.inner_phases, options.block_ms)}};
}

Refusal compare_options(Transport& transport, const std::vector<OptionHash>& options, const Refusal& refusal,
                        std::chrono::milliseconds deadline) {
  constexpr std::size_t kMost = 32;
  struct Note {
    std::array<std::uint64_t, kMost> hashes{};
    Errc code = Errc::internal;
    Text refusal{};
  };
  Note mine;
  for (std::size_t i = 0; i < options.size(); ++i) mine.hashes.at(i) = options[i].hash;
  mine.code = refusal.code;
  mine.refusal = as_text(refusal.text);
  const std::vector<Note> all = gather(transport, std::vector<Note>{mine}, deadline);
  for (std::size_t rank = 0; rank < all.size(); ++rank)
    if (all[rank].refusal[0] != '\0')
      return {all[rank].code, fmt::format("rank {}: {}", rank, all[rank].refusal.data())};
  for (std::size_t rank = 1; rank < all.size(); ++rank)
    for (std::size_t i = 0; i < options.size(); ++i)
      if (all[rank].hashes.at(i) != all[0].hashes.at(i))
        return {
            Errc::invalid_argument,
            fmt::format("rank {} was started with another {} than rank 0; allowed: the same on every rank",
                        rank, options[i].name)};
  return {};
}

std::vector<std::int32_t> separate_nodes(const Transport& transport) {
  if (transport.capabilities().load_store) return {};
  const World& world = transport.world();
  std::vector<std::int32_t> nodes(static_cast<std::size_t>(world.size));
  for (std::int32_t rank = 0; rank < world.size; ++rank)
    // A transport that loads nobody's memory, whatever the nodes are, makes every rank a node of its own.
    nodes[static_cast<std::size_t>(rank)] = world.num_nodes() == 1 ? rank : world.node_of(rank);
  return nodes;
}

PointTerms agree_on_point(Transport& transport, const Workload* workload,
                          const std::vector<MethodSpec>& specs, const MethodSettings& settings,
                          std::int64_t rounds, const PointWishes& wishes) {
  PointNote mine{.max_seconds = wishes.max_seconds,
                 .begin_ns = wishes.begin_ns,
                 .thresholds = wishes.thresholds,
                 .available_bytes = wishes.available_bytes,
                 .domain = clock_domain(),
                 .routing = workload == nullptr ? 0 : hash_routing(*workload),
                 .code = wishes.refusal.code,
                 .refusal = as_text(wishes.refusal.text)};
  const std::vector<PointNote> notes = gather(transport, std::vector<PointNote>{mine}, settings.deadline);
  for (std::size_t rank = 0; rank < notes.size(); ++rank)
    if (notes[rank].refusal[0] != '\0')
      throw Error(notes[rank].code, fmt::format("rank {}: {}", rank, notes[rank].refusal.data()));
  for (std::size_t rank = 1; rank < notes.size(); ++rank)
    if (notes[rank].routing != notes[0].routing)
      throw Error(
          Errc::invalid_argument,
          fmt::format("rank {} routes its tokens to other experts than rank 0 does; allowed: --routing "
                      "files of the same content on every machine",
                      rank));
  const PointNote& first = notes.front();
  PointTerms terms;
  terms.max_seconds = first.max_seconds;
  terms.begin_ns = first.begin_ns;
  terms.thresholds = first.thresholds;
  const bool one_clock = std::all_of(notes.begin(), notes.end(),
                                     [&](const PointNote& note) { return note.domain == first.domain; });
  terms.clock = one_clock ? StampClock::common : StampClock::per_rank;
  terms.unprobed = transport.world().size < 2 ? "single" : "network";
  std::vector<MethodSpec> possible = specs;
  const std::vector<std::string> reasons = gather_reasons(transport, specs, settings.deadline);
  for (std::size_t i = 0; i < specs.size(); ++i) possible[i].unavailable = reasons[i];
  const auto hopeless = static_cast<std::int64_t>(terms.max_seconds / 2 / static_cast<double>(rounds) *
                                                  wishes.hopeless_bytes_per_second);
  terms.plan = plan_methods(possible, *workload, settings, shared_budget(notes), hopeless);
  return terms;
}

}  // namespace shunt::bench
