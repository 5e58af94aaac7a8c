#include <cmath>

#include <fmt/format.h>

#include <shunt/cluster/cost_model.h>
#include <shunt/core/error.h>
#include <shunt/core/nearest.h>

// The formulas, one function for each. docs/cost_model.md explains them; parameters come in the order of the lists below.

namespace shunt {
namespace {

/// Of several resources that work at the same time the slowest counts, with a soft edge: (a^4 + b^4 + …)^(1/4).
double slowest(double a, double b, double c = 0) {
  const auto fourth = [](double v) { return v * v * v * v; };
  return std::sqrt(std::sqrt(fourth(a) + fourth(b) + fourth(c)));
}

/// The same with the softest edge that still is a maximum: for stages that overlap only in part.
double overlapping(double a, double b, double c) {
  return std::sqrt(a * a + b * b + c * c);
}

/// What comes with the first tokens and is there in full after some `half`.
double filling(double amount, double half) {
  return amount / (amount + half);
}

double low_latency_base(const double* p, const CostTerms& t, double first_row) {
  return t.latency * (p[0] + p[1] * t.experts + p[2] * t.shared_block + p[3] * first_row + p[4] * t.older) +
         p[5] * t.several_nodes + p[6] * t.log_nodes;
}

double low_latency_dispatch(const double* p, const CostTerms& t) {
  const double send = t.waves * (p[7] + p[8] * t.hidden);
  const double near = t.near_bytes / (p[11] * t.scale_up);
  const double far = t.far_bytes / (p[12] * t.network);
  const double receive = t.selections / t.blocks * (p[9] + p[10] * t.hidden);
  return low_latency_base(p, t, t.any) + overlapping(send, near, far) + receive;
}

double low_latency_combine(const double* p, const CostTerms& t) {
  const double send = t.selections / t.blocks * (p[7] + p[8] * t.hidden);
  const double near = t.near_bytes / (p[11] * t.scale_up);
  const double far = t.far_bytes / (p[12] * t.network);
  const double reduce = t.waves * (p[9] + p[10] * t.hidden * t.topk);
  return low_latency_base(p, t, t.any * t.hidden / 4096) + overlapping(send, near, far) + reduce;
}

/// The intranode calls were timed with their launch and the small kernel before them, the internode kernels alone.
constexpr double kTwoLaunches = 4;

double normal_mode(const double* p, const CostTerms& t) {
  const bool internode = t.several_nodes > 0;
  const double base = t.latency * (p[0] + p[1] * t.hidden + p[2] * t.rank_rows) +
                      (internode ? p[3] * (t.nodes - 1) : kTwoLaunches + p[4] * t.older);
  const double fill = (internode ? p[15] : t.latency * p[5]) * filling(t.tokens, p[6]);
  const double share = t.tokens / t.channels;
  const double copies = internode ? share * (t.rank_rows + t.node_rows) * (p[11] + p[12] * t.row)
                                  : share * (p[7] + p[8] * t.row + t.rank_rows * (p[9] + p[10] * t.row));
  // Every row that leaves over the network lands at one GPU of the other node, which passes it on to its neighbours.
  const double near = t.tokens * t.rank_rows * t.row * (1 - t.nodes / t.ranks) / (p[13] * t.scale_up);
  const double far = t.far_bytes / (p[14] * t.network);
  return base + fill + slowest(copies, near, far);
}

/// Counts go to every rank before the rows do, or, for a combine, flags are cleared and each channel walks its tokens.
/// Calls on one node have no such kernel apart from their own.
double notify(const double* p, const CostTerms& t) {
  if (t.several_nodes == 0) return 0;
  return p[0] + p[1] * (t.nodes - 1) + p[2] * filling(t.tokens, p[3]) + t.tokens / t.channels * p[4];
}

double nvlink_alltoall(const double* p, const CostTerms& t) {
  const double base = t.latency * (p[0] + p[1] * t.rank_rows + p[7] * filling(t.tokens, p[8]));
  const double sm = t.tokens * (p[2] + p[3] * t.rank_rows);
  const double peer = t.tokens * t.rank_rows / t.ranks * (p[4] + p[5] * t.row);
  const double wire = (t.near_bytes + t.far_bytes) / (p[6] * t.scale_up);
  return base + sm + slowest(peer, wire);
}

/// A protocol for short messages and one for long ones; the library changes at a size, which `sharp` blurs a little.
double switched(double brief, double lengthy, double size, double threshold) {
  const double ratio = size / threshold;
  const double quarter = ratio * ratio * ratio * ratio;
  const double w = quarter / (1 + quarter);
  return std::exp((1 - w) * std::log(brief) + w * std::log(lengthy));
}

double ring(const double* p, const CostTerms& t, double share) {
  const double n = t.ranks;
  const double wire_bytes = t.message * share * (n - 1) / n;
  const double base = t.latency * (p[0] + p[1] * t.gap * share) + p[12] * t.older;
  const double brief = base + t.latency * p[2] * std::sqrt(n - 1) * filling(t.message, p[3] * 1e3) +
                       wire_bytes / (p[4] * t.scale_up);
  const double wire = wire_bytes / (p[7] * t.scale_up) * (1 + p[8] / n);
  const double lengthy = base + slowest(t.latency * p[5] * std::pow(n, p[6]), t.latency * p[11] + wire);
  return switched(brief, lengthy, t.message, p[9] * 1e6 * std::pow(n, p[10]));
}

double ring_once(const double* p, const CostTerms& t) {
  return ring(p, t, 1);
}
double ring_twice(const double* p, const CostTerms& t) {
  return ring(p, t, 2);
}

/// Largest part for one peer that NCCL sends in its protocol for short messages (NCCL_P2P_LL_THRESHOLD).
constexpr double kShortPart = 16384;

/// Of the NIC rate, for collectives across nodes, of which there are no measurements to fit.
constexpr double kNetworkShare = 0.92;

double pairwise(const double* p, const CostTerms& t) {
  const double n = t.ranks;
  const double far = t.far_bytes / (kNetworkShare * t.network);
  const double wire_bytes = t.message * (n - 1) / n - t.far_bytes;
  const double base = t.latency * (p[0] + p[1] * t.gap);
  const double brief = base + p[2] * t.older + wire_bytes / (p[3] * t.scale_up) + far;
  const double wire = wire_bytes / (p[4] * t.scale_up) * (1 + p[5] / n);
  const double lengthy =
      base + slowest(t.latency * p[6], wire, far) + t.latency * p[7] * filling(t.message, p[8] * 1e3);
  return switched(brief, lengthy, t.message, kShortPart * n * (t.older > 0 ? p[9] : 1));
}

double host_step(const double* p, const CostTerms& t) {
  return p[0] + p[1] * (t.ranks - 1) + t.selections * (p[2] + p[3] * t.row);
}

constexpr double kNone = 1e-9;
constexpr double kAny = 1e9;

CostParameter part(const char* name, double prior, const char* meaning) {
  return {name, "share", prior, 0.05, 1, meaning};
}
CostParameter us(const char* name, double prior, const char* meaning, const char* unit = "us") {
  return {name, unit, prior, kNone, kAny, meaning};
}

std::vector<CostParameter> low_latency_parameters(bool dispatch) {
  std::vector<CostParameter> list = {
      us("base", 8, "launch, barrier and count signals"),
      us("per_expert", 0.01, "one count signal", "us/expert"),
      us("shared_block", 0.5, "several experts share a thread block"),
      us("first_row", 1, dispatch ? "a row's way" : "a row's way, for each 4096 elements"),
      us("older_release", 1, "of the older measured release"),
      us("network", dispatch ? 1 : 10, "first message over the network"),
      us("network_doubling", 4, "each doubling of the nodes"),
  };
  if (dispatch) {
    list.push_back(us("token", 1, "cast and send of one token by one block", "us/token"));
    list.push_back(us("token_element", 2e-4, "the same, for each element", "us"));
    list.push_back(us("row", 0.05, "copy of one arrived row by one block", "us/row"));
    list.push_back(us("row_element", 1e-5, "the same, for each element", "us"));
  } else {
    list.push_back(us("row", 1e-3, "send of one row by one block", "us/row"));
    list.push_back(us("row_element", 1e-6, "the same, for each element", "us"));
    list.push_back(us("token", 1e-3, "sum of one token by one block", "us/token"));
    list.push_back(us("token_element", 1e-6, "the same, for each element and row", "us"));
  }
  list.push_back(part("scale_up", 0.7, "of the NVLink rate"));
  list.push_back(part("network_rate", 0.92, "of the NIC rate"));
  return list;
}

/// A warp moves a row 512 bytes at a time (32 lanes of 16), that is 256 elements, and waits for each load. Dispatch has
/// five loads in flight; combine sends with four, then sums the rows of a token with one.
/// Source: UNROLLED_WARP_COPY and the loop of the sum in csrc/kernels/legacy/intranode.cu of deepseek-ai/DeepEP at
///         dd758ca. The latency of a load that misses the caches is an assumption.
constexpr double kLoadUs = 0.6;
constexpr double kElementsOfALoad = 256;
constexpr double kDispatchElement = kLoadUs / kElementsOfALoad / 5;
constexpr double kCombineElement = kLoadUs / kElementsOfALoad * (1 + 1.0 / 4);

std::vector<CostParameter> normal_parameters(double element) {
  return {us("base", 18, "kernel and notification"),
          us("base_element", element, "for each element of a row: loads that a warp waits for"),
          us("base_rank", 0.3, "for each rank that a token reaches"),
          us("network_node", 5, "each other node"),
          us("older_release", 5, "of the older measured release, one node"),
          us("fill", 10, "filling of the queues"),
          us("fill_tokens", 150, "tokens that fill them half", "tokens"),
          us("token", 0.1, "one token in one channel", "us/token"),
          us("token_byte", 1e-5, "the same, for each byte", "us/B"),
          us("row", 0.05, "one copy of a row in one channel", "us/row"),
          us("row_byte", 2e-5, "the same, for each byte", "us/B"),
          us("hop", 0.1, "one copy of a row in one channel, several nodes", "us/row"),
          us("hop_byte", 2e-5, "the same, for each byte", "us/B"),
          part("scale_up", 0.7, "of the NVLink rate"),
          part("network_rate", 0.92, "of the NIC rate"),
          us("network_fill", 25, "filling of the queues, several nodes")};
}

std::vector<CostParameter> notify_parameters() {
  return {us("base", 15, "launch and barrier"), us("network_node", 10, "each other node"),
          us("fill", 10, "what comes with the first tokens"),
          us("fill_tokens", 500, "tokens at which half of it is there", "tokens"),
          us("token", 0.01, "one token in one channel", "us/token")};
}

std::vector<CostParameter> nvlink_parameters() {
  return {us("base", 7, "launch, barrier, flags"),
          us("base_rank", 0.7, "for each rank that a token reaches"),
          us("token", 1e-3, "one token", "us/token"),
          us("token_rank", 1e-3, "one token, for each rank it reaches", "us/row"),
          us("peer_row", 0.02, "one row in the channel of one peer", "us/row"),
          us("peer_byte", 1e-6, "the same, for each byte", "us/B"),
          part("scale_up", 0.7, "of the NVLink rate"),
          us("fill", 1, "filling of the queues"),
          us("fill_tokens", 500, "tokens that fill them half", "tokens")};
}

std::vector<CostParameter> ring_parameters() {
  return {us("base", 4, "launch and protocol"),
          us("base_rank", 1.3, "for each (ranks - 1)^0.8"),
          us("brief_fill", 1, "change from 8-byte to 128-byte flags, for each (ranks - 1)^0.5"),
          us("brief_fill_bytes", 30, "message at which half of it is there", "kB"),
          part("brief_rate", 0.3, "of the NVLink rate, short messages"),
          us("steps", 5, "least time of the ring's steps, long messages"),
          {"steps_power", "", 1, 1e-3, 1.3, "how it grows with the ranks"},
          part("long_rate", 0.85, "of the NVLink rate, long messages, many ranks"),
          us("rank_share", 1, "what a ring of n loses: 1 + this / n", ""),
          us("switch_bytes", 1, "message at which the protocol changes", "MB"),
          {"switch_power", "", 0.5, 1e-3, 2, "how it grows with the ranks"},
          us("long_fill", 12, "filling of the ring, long messages"),
          us("older_release", 0.3, "of the older measured releases")};
}

std::vector<CostParameter> pairwise_parameters() {
  return {us("base", 6, "launch and protocol"),
          us("base_rank", 0.3, "for each (ranks - 1)^0.8"),
          us("older_release", 0.3, "of the older measured releases, short messages"),
          part("brief_rate", 0.05 * 4, "of the NVLink rate, short messages"),
          part("long_rate", 0.85, "of the NVLink rate, long messages, many ranks"),
          us("rank_share", 1, "what n ranks lose: 1 + this / n", ""),
          us("long_base", 5, "least time of the protocol for long messages"),
          us("long_fill", 5, "filling of its queues"),
          us("long_fill_bytes", 5000, "message at which half of it is there", "kB"),
          us("older_switch", 6, "threshold of the older releases, times that of the newer", "")};
}

std::vector<CostParameter> host_parameters() {
  return {us("base", 5, "one step without tokens"), us("peer", 1, "each other rank"),
          us("row", 0.05, "one row", "us/row"), us("row_byte", 1e-4, "one byte of a row", "us/B")};
}

std::vector<CostForm> make_forms() {
  std::vector<CostForm> all;
  all.push_back({"deepep_low_latency", "dispatch", low_latency_parameters(true), low_latency_dispatch});
  all.push_back({"deepep_low_latency", "combine", low_latency_parameters(false), low_latency_combine});
  all.push_back({"deepep_normal", "dispatch", normal_parameters(kDispatchElement), normal_mode});
  all.push_back({"deepep_normal", "combine", normal_parameters(kCombineElement), normal_mode});
  for (const char* op : {"dispatch", "combine"})
    all.push_back({"deepep_notify", op, notify_parameters(), notify});
  for (const char* op : {"dispatch", "combine", "combine_low_precision", "prepare"})
    all.push_back({"trtllm_nvlink_alltoall", op, nvlink_parameters(), nvlink_alltoall});
  for (const char* op : {"all_gather", "reduce_scatter"})
    all.push_back({"nccl", op, ring_parameters(), ring_once});
  all.push_back({"nccl", "all_reduce", ring_parameters(), ring_twice});
  all.push_back({"nccl", "alltoall", pairwise_parameters(), pairwise});
  for (const char* op : {"dispatch", "combine", "total"})
    all.push_back({"host", op, host_parameters(), host_step});
  return all;
}

}  // namespace

const std::vector<CostForm>& cost_forms() {
  static const std::vector<CostForm> list = make_forms();
  return list;
}

const CostForm& find_cost_form(const std::string& regime, const std::string& op) {
  std::vector<std::string> names;
  for (const CostForm& form : cost_forms()) {
    if (form.regime == regime && form.op == op) return form;
    names.push_back(form.regime + "/" + form.op);
  }
  throw Error(Errc::invalid_argument, fmt::format("there is no formula \"{}/{}\"; {}", regime, op,
                                                  allowed_names(regime + "/" + op, names)));
}

double evaluate_cost(const CostForm& form, std::span<const double> parameters, const CostTerms& terms) {
  if (parameters.size() != form.parameters.size()) {
    throw Error(Errc::invalid_argument,
                fmt::format("the formula {}/{} takes {} parameters, not {}", form.regime, form.op,
                            form.parameters.size(), parameters.size()));
  }
  return form.evaluate(parameters.data(), terms);
}

}  // namespace shunt
