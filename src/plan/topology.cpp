#include <algorithm>
#include <map>

#include <fmt/format.h>

#include <shunt/core/error.h>
#include <shunt/core/nearest.h>
#include <shunt/plan/affinity.h>

namespace shunt::plan {
namespace {

constexpr std::int64_t kMostRanks = 256;

[[noreturn]] void refuse(const std::string& why) {
  throw Error(Errc::invalid_argument, why);
}

std::string gpu(std::int64_t rank) {
  return fmt::format("GPU {}", rank);
}

/// Over the fabric inside a scale-up domain, or PCIe inside a host.
RankPath near_path(const Machine& machine, std::int64_t from, std::int64_t to) {
  const NodeSpec& node = machine.node;
  RankPath path;
  path.tier = machine.near_tier();
  path.latency_us = machine.scale_up.latency_us;
  path.gb_per_s = machine.scale_up.gb_per_s;
  switch (node.scale_up) {
    case ScaleUp::switched:
      path.by = "nvswitch";
      path.hops = 2;
      path.steps = {gpu(from), "NVSwitch", gpu(to)};
      break;
    case ScaleUp::full_mesh:
      path.by = node.gpu.scale_up.fabric == Fabric::xgmi ? "xgmi" : "nvlink";
      path.hops = 1;
      // A pair has its own link: one of as many as there are other GPUs.
      path.gb_per_s /= static_cast<double>(node.domain_gpus - 1);
      path.steps = {gpu(from), gpu(to)};
      break;
    case ScaleUp::none:
      path.by = "pcie";
      path.hops = 2;
      path.steps = {gpu(from), "PCIe switch or host bridge", gpu(to)};
      break;
  }
  return path;
}

RankPath far_path(const Machine& machine, std::int64_t from, std::int64_t to) {
  const RankPlace a = place_of_rank(machine, from);
  const RankPlace b = place_of_rank(machine, to);
  const auto card = [](const RankPlace& place) {
    return fmt::format("card {} of host {}", place.rail, place.host);
  };
  const auto leaf = [](const RankPlace& place, std::int64_t rail) {
    return fmt::format("leaf switch of rail {}, pod {}", rail, place.pod);
  };
  RankPath path;
  path.gb_per_s = machine.network.gb_per_s;
  path.latency_us = machine.network.latency_us;
  if (a.pod == b.pod && a.rail == b.rail) {
    path.tier = Tier::network;
    path.by = "rail";
    path.hops = 4;
    path.steps = {gpu(from), card(a), leaf(a, a.rail), card(b), gpu(to)};
    return path;
  }
  if (a.pod == b.pod && machine.node.scale_up != ScaleUp::none) {
    // The GPU of the own host whose card is on the other's rail passes the bytes on.
    const std::int64_t relay = a.host * machine.node.gpus + to % machine.node.gpus;
    const RankPath inside = near_path(machine, from, relay);
    RankPath rest = far_path(machine, relay, to);
    rest.by = "nvlink + rail";
    rest.hops += inside.hops;
    rest.gb_per_s = std::min(rest.gb_per_s, inside.gb_per_s);
    rest.latency_us += inside.latency_us;
    rest.steps.insert(rest.steps.begin(), inside.steps.begin(), inside.steps.end() - 1);
    return rest;
  }
  path.tier = Tier::spine;
  path.by = "spine";
  path.hops = 6;
  path.gb_per_s = std::min(path.gb_per_s, machine.spine.gb_per_s);
  path.latency_us = machine.spine.latency_us;
  path.steps = {gpu(from), card(a), leaf(a, a.rail), "spine switch", leaf(b, b.rail), card(b), gpu(to)};
  return path;
}

void check_rank(const Machine& machine, std::int64_t rank) {
  if (rank < 0 || rank >= machine.gpus())
    refuse(fmt::format("rank {}: {} hosts of {} GPUs have ranks 0 to {}", rank, machine.hosts,
                       machine.node.gpus, machine.gpus() - 1));
}

Table one_path(const Machine& machine, const TopologyOptions& o, Report& report) {
  const RankPath path = path_between(machine, o.from, o.to);
  report.head.set("from", o.from)
      .set("to", o.to)
      .set("tier", tier_name(path.tier))
      .set("by", path.by)
      .set("hops", path.hops)
      .set("gb_per_s", path.gb_per_s)
      .set("latency_us", path.latency_us);
  report.summary.push_back(fmt::format("rank {} to rank {}: {}, {} hops, {:.5g} GB/s, {:.3g} us", o.from,
                                       o.to, path.by, path.hops, path.gb_per_s, path.latency_us));
  Table table{"steps", {{"step", "step"}, {"at", "at"}}, {}};
  for (std::size_t i = 0; i < path.steps.size(); ++i)
    table.rows.push_back({static_cast<std::int64_t>(i), path.steps[i]});
  return table;
}

Table matrix(const Machine& machine, std::int64_t ranks, const std::string& show) {
  Table table{"matrix", {{"rank", "rank"}}, {}};
  for (std::int64_t to = 0; to < ranks; ++to)
    table.columns.push_back({fmt::format("{}", to), fmt::format("{}", to)});
  for (std::int64_t from = 0; from < ranks; ++from) {
    std::vector<RecordValue> row{from};
    for (std::int64_t to = 0; to < ranks; ++to) {
      const RankPath path = path_between(machine, from, to);
      if (show == "hops") {
        row.emplace_back(path.hops);
      } else if (show == "gb_per_s") {
        row.emplace_back(path.gb_per_s);
      } else {
        row.emplace_back(path.by);
      }
    }
    table.rows.push_back(std::move(row));
  }
  return table;
}

/// What rank 0 sees; others see the same but for the last, incomplete domain or pod.
Table tiers(const Machine& machine) {
  struct Tally {
    RankPath path;
    std::int64_t peers = 0;
    std::int64_t nearest = 0;
  };
  std::vector<std::pair<std::string, Tally>> seen;
  for (std::int64_t rank = 0; rank < machine.gpus(); ++rank) {
    const RankPath path = path_between(machine, 0, rank);
    const auto same = [&](const auto& entry) { return entry.first == path.by; };
    auto found = std::find_if(seen.begin(), seen.end(), same);
    if (found == seen.end()) found = seen.insert(seen.end(), {path.by, {path, 0, rank}});
    ++found->second.peers;
  }
  std::stable_sort(seen.begin(), seen.end(),
                   [](const auto& a, const auto& b) { return a.second.path.hops < b.second.path.hops; });
  Table table{"tiers",
              {{"by", "by"},
               {"tier", "tier"},
               {"hops", "hops"},
               {"gb_per_s", "GB/s"},
               {"latency_us", "us"},
               {"peers", "peers of rank 0"},
               {"example", "for example rank"}},
              {}};
  for (const auto& [by, tally] : seen) {
    table.rows.push_back({by, std::string(tier_name(tally.path.tier)), tally.path.hops, tally.path.gb_per_s,
                          tally.path.latency_us, tally.peers, tally.nearest});
  }
  return table;
}

}  // namespace

RankPlace place_of_rank(const Machine& machine, std::int64_t rank) {
  check_rank(machine, rank);
  const std::int64_t gpus = machine.node.gpus;
  RankPlace place;
  place.host = rank / gpus;
  place.domain = rank / std::max<std::int64_t>(machine.node.domain_gpus, 1);
  place.pod = machine.pod_gpus > 0 ? rank / machine.pod_gpus : 0;
  place.rail = rank % gpus * machine.node.nics / gpus;
  return place;
}

RankPath path_between(const Machine& machine, std::int64_t from, std::int64_t to) {
  const RankPlace a = place_of_rank(machine, from);
  const RankPlace b = place_of_rank(machine, to);
  if (from == to) {
    RankPath path;
    path.tier = Tier::hbm;
    path.by = "self";
    path.gb_per_s = machine.hbm.gb_per_s;
    path.steps = {gpu(from)};
    return path;
  }
  if (machine.node.scale_up == ScaleUp::none ? a.host == b.host : a.domain == b.domain)
    return near_path(machine, from, to);
  return far_path(machine, from, to);
}

Report report_topology(const Machine& machine, const TopologyOptions& o) {
  const std::vector<std::string> shows = {"hops", "gb_per_s", "tier"};
  if (std::find(shows.begin(), shows.end(), o.show) == shows.end())
    refuse(fmt::format("--show \"{}\": {}", o.show, allowed_names(o.show, shows)));
  if ((o.from < 0) != (o.to < 0)) refuse("a path needs both --from and --to");
  const std::int64_t ranks = o.ranks == 0 ? std::min(machine.gpus(), kMostRanks) : o.ranks;
  check_rank(machine, ranks - 1);
  if (ranks > kMostRanks)
    refuse(fmt::format("a matrix of {} ranks; at most {} are shown", ranks, kMostRanks));
  Report report("plan_topology");
  report.head.set("node", machine.node.name)
      .set("hosts", machine.hosts)
      .set("gpus", machine.gpus())
      .set("domain_gpus", machine.domain())
      .set("pod_gpus", machine.pod_gpus)
      .set("oversubscription", machine.oversubscription);
  report.summary.push_back(
      fmt::format("{} hosts {} with {} GPUs and {} network cards each; {} GPUs in a {} domain", machine.hosts,
                  machine.node.name, machine.node.gpus, machine.node.nics, machine.domain(),
                  scale_up_name(machine.node.scale_up)));
  if (o.from >= 0) {
    report.tables.push_back(one_path(machine, o, report));
    return report;
  }
  report.tables.push_back(tiers(machine));
  report.tables.push_back(matrix(machine, ranks, o.show));
  report.csv_table = 1;
  if (ranks < machine.gpus() && o.ranks == 0)
    report.notes.push_back(fmt::format("the matrix has the first {} of {} ranks", ranks, machine.gpus()));
  report.notes.emplace_back(
      "rates are those of one pair alone, as the cost model has them; hops are links: GPU, switch, card and "
      "switch tiers");
  return report;
}

}  // namespace shunt::plan
