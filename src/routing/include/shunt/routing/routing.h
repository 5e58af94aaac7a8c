#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace shunt {

/// Expert choice of the tokens of one group. -1 in `ids` skips that choice.
/// What Router draws: weights are > 0 where an expert is chosen and 0 at -1; those of one token sum to 1 in
/// double to within 1e-6, also after masking; a token that skips every choice has weights 0. Routings from
/// traces and dumps keep the weights they came with (see check_routing).
struct Routing {
  std::int64_t num_tokens = 0;    ///< T
  std::int32_t top_k = 0;         ///< K
  std::int32_t num_experts = 0;   ///< E
  std::vector<std::int32_t> ids;  ///< [T, K], distinct within a token
  std::vector<float> weights;     ///< [T, K]
};

/// How tokens choose experts.
enum class RoutingKind : std::uint8_t {
  uniform,    ///< K distinct experts, all equally likely
  power_law,  ///< K distinct experts, expert e drawn with weight (its rank in a seeded permutation + 1)^-alpha
  one,        ///< All to one: every token chooses experts 0 … K-1
  grouped,    ///< Group-limited: `top_groups` of `groups` equal expert groups are drawn, then K of theirs
  trace,  ///< From a trace file: group g repeats, step by step, what group g mod (groups of the trace) chose
  text,   ///< From a text: words become token embeddings, a router from the seed chooses
};

struct RoutingSpec {
  RoutingKind kind = RoutingKind::uniform;
  double alpha = 1.0;           ///< power_law, >= 0
  std::int32_t groups = 8;      ///< grouped; divides E
  std::int32_t top_groups = 4;  ///< grouped; 1 <= top_groups <= groups, top_groups * E / groups >= K
  std::string file;             ///< trace, text
  double mask_share = 0.0;      ///< Each choice becomes -1 with this probability, 0 <= share <= 1
  bool uneven = false;          ///< Group g brings a seeded number of tokens in [0, T] instead of T
};

/// Parses KIND[:ARGUMENT][+mask:SHARE][+uneven], KIND one of uniform, powerlaw:ALPHA, one,
/// grouped:GROUPS,TOP_GROUPS, trace:FILE, text:FILE. Modifiers are taken off the end; what is left of a FILE
/// may contain '+'.
/// Errors: Errc::invalid_argument with the text, the part that is wrong and what is allowed.
[[nodiscard]] RoutingSpec parse_routing(std::string_view text);
/// Inverse of parse_routing, for records; fields that the kind does not use are left out.
[[nodiscard]] std::string routing_name(const RoutingSpec& spec);

/// Sizes of what to route.
struct RoutingShape {
  std::int64_t num_tokens = 0;   ///< T, per group
  std::int32_t num_groups = 1;   ///< G
  std::int32_t num_experts = 1;  ///< E
  std::int32_t top_k = 1;        ///< K <= E
};

/// Makes routings. Reads files once, in the constructor.
/// Result:  route() is a pure function of (spec, file content, shape, seed, group): the same on every rank
///          and platform. docs/formats.md "Routing specification" says how each kind draws. The routing of
///          fewer tokens is a prefix of that of more, except with uneven and where there are more groups than
///          the trace has.
/// Threads: route() may run on several threads at once.
class Router {
 public:
  /// Errors: Errc::io (file missing or malformed, with line and column), Errc::invalid_argument (spec against
  ///         shape).
  Router(const RoutingSpec& spec, const RoutingShape& shape, std::uint64_t seed);
  ~Router();
  Router(Router&&) noexcept;
  Router& operator=(Router&&) noexcept;
  /// Errors: Errc::invalid_argument on a group outside [0, num_groups).
  [[nodiscard]] Routing route(std::int32_t group) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// Checks sizes (1 <= K <= E, [T, K]), ids (range [-1, E), distinct in a token) and weights (finite) of data
/// that came from outside.
/// Errors: Errc::invalid_argument naming `origin`, token, k, the value and what is allowed.
void check_routing(const Routing& routing, std::string_view origin);

}  // namespace shunt
