#include "transport_bench_options.h"

#include <algorithm>
#include <charconv>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <shunt/bench/options.h>
#include <shunt/core/error.h>

namespace shunt::bench {
namespace {

constexpr std::int64_t kMostBytes = std::int64_t{1} << 30;

template <class... Args>
[[noreturn]] void refuse(fmt::format_string<Args...> text, Args&&... args) {
  throw Error(Errc::invalid_argument, fmt::format(text, std::forward<Args>(args)...));
}

void check_range(const char* option, std::int64_t value, std::int64_t min, std::int64_t max) {
  if (value < min || value > max) refuse("{} is {}; allowed: {} to {}", option, value, min, max);
}

void check_transports(const std::vector<std::string>& given) {
  std::vector<std::string> names{"auto"};
  for (const TransportInfo& info : transport_registry()) names.push_back(info.name);
  for (std::size_t i = 0; i < given.size(); ++i) {
    if (std::find(names.begin(), names.end(), given[i]) == names.end())
      refuse("--transport: \"{}\" is not a transport; allowed: {}", given[i], fmt::join(names, ", "));
    if (std::find(given.begin(), given.begin() + static_cast<std::ptrdiff_t>(i), given[i]) !=
        given.begin() + static_cast<std::ptrdiff_t>(i))
      refuse("--transport: \"{}\" is named twice; allowed: each transport once", given[i]);
  }
}

}  // namespace

std::int64_t parse_size(std::string_view option, std::string_view text) {
  std::int64_t value = 0;
  const char* const end = text.data() + text.size();
  const auto [rest, error] = std::from_chars(text.data(), end, value);
  int shift = 0;
  bool right = error == std::errc{} && end - rest <= 1;
  if (right && rest != end) {
    const std::size_t unit = std::string_view("kmg").find(static_cast<char>(*rest | 0x20));
    right = unit != std::string_view::npos;
    shift = right ? 10 * (static_cast<int>(unit) + 1) : 0;
  }
  if (!right || value < 1 || value > kMostBytes >> shift)
    refuse(
        "{}: \"{}\" is not allowed; allowed: a whole number of bytes from 1 to 1G, with K, M or G for 1024, "
        "1024^2 or 1024^3",
        option, text);
  return value << shift;
}

const std::vector<std::string>& transport_operations() {
  static const std::vector<std::string> names{"put_latency",    "put_bandwidth", "put_bibandwidth",
                                              "signal_latency", "barrier",       "allgather",
                                              "alltoall",       "alltoallv"};
  return names;
}

std::vector<std::int64_t> message_sizes(const TransportBenchOptions& options) {
  std::vector<std::int64_t> sizes;
  for (std::int64_t bytes = options.min_bytes; bytes <= options.max_bytes; bytes *= options.factor)
    sizes.push_back(bytes);
  return sizes;
}

std::vector<std::string> settle_transport_options(TransportBenchOptions& options,
                                                  std::vector<std::string>& notes) {
  check_range("--max-bytes", options.max_bytes, 1, kMostBytes);
  if (options.min_bytes < 1 || options.min_bytes > options.max_bytes)
    refuse("--min-bytes is {}; allowed: 1 to --max-bytes, {}", options.min_bytes, options.max_bytes);
  check_range("--factor", options.factor, 2, 1024);
  check_range("--ranks", options.ranks, 1, 1024);
  if (options.nodes < 1 || options.ranks % options.nodes != 0)
    refuse("--nodes is {}; allowed: a divisor of the number of ranks, {}", options.nodes, options.ranks);
  check_range("--window", options.window, 1, 1 << 16);
  check_range("--warmup", options.warmup, 0, 1'000'000);
  check_range("--iterations", options.iterations, 0, 500);
  check_range("--rounds", options.rounds, 1, 100'000);
  check_range("--deadline", options.deadline_ms, 1, 86'400'000);
  check_transports(options.transports);
  const std::vector<std::string>& names = transport_operations();
  for (const std::string& op : options.ops)
    if (std::find(names.begin(), names.end(), op) == names.end())
      refuse("--ops: \"{}\" is not an operation; allowed: {}", op, fmt::join(names, ", "));
  std::vector<std::string> wanted;
  for (const std::string& op : names) {
    if (!options.ops.empty() && std::find(options.ops.begin(), options.ops.end(), op) == options.ops.end())
      continue;
    const bool pair = op.starts_with("put_") || op.starts_with("signal_");
    if (options.ranks > 1 || !pair) {
      wanted.push_back(op);
    } else if (!options.ops.empty()) {
      refuse(
          "--ranks is 1, but {} needs two ranks; allowed: 2 to 1024, or --ops barrier,allgather,alltoall,"
          "alltoallv",
          op);
    }
  }
  if (options.ranks == 1)
    notes.emplace_back("puts and signals: not measured: they need two ranks, and there is 1");
  return wanted;
}

}  // namespace shunt::bench
