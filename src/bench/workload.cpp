#include <shunt/bench/workload.h>

#include <algorithm>

#include <fmt/format.h>

#include <shunt/core/error.h>
#include <shunt/core/random.h>
#include <shunt/layout/slots.h>
#include <shunt/pack/kernels.h>

namespace shunt::bench {
namespace {

// Keeps token values apart from every other use of the user's seed.
constexpr std::uint64_t kTokenSeed = 0x746f6b656e730001ULL;

std::vector<Routing> route_all(const Point& point, const ModelDump* dump, std::int32_t groups) {
  std::vector<Routing> all;
  if (dump == nullptr) {
    const Router router(point.routing,
                        RoutingShape{.num_tokens = point.tokens,
                                     .num_groups = groups,
                                     .num_experts = point.num_experts,
                                     .top_k = point.top_k},
                        point.seed);
    for (std::int32_t g = 0; g < groups; ++g) all.push_back(router.route(g));
    return all;
  }
  if (dump->routing.top_k != point.top_k || dump->hidden != point.hidden)
    throw Error(
        Errc::invalid_argument,
        fmt::format(
            "--input holds tokens of hidden size {} with {} experts each, but the point asks for {} and {}; "
            "leave out --hidden and --topk or give these",
            dump->hidden, dump->routing.top_k, point.hidden, point.top_k));
  if (dump->num_tokens == 0)
    throw Error(Errc::invalid_argument, "--input: the dump holds no tokens; at least 1 is needed");
  const auto k = static_cast<std::size_t>(point.top_k);
  for (std::int32_t g = 0; g < groups; ++g) {
    Routing routing{.num_tokens = point.tokens,
                    .top_k = point.top_k,
                    .num_experts = point.num_experts,
                    .ids = {},
                    .weights = {}};
    for (std::int64_t t = 0; t < point.tokens; ++t) {
      const auto from = static_cast<std::size_t>((g * point.tokens + t) % dump->num_tokens) * k;
      for (std::size_t i = from; i < from + k; ++i) {
        routing.ids.push_back(dump->routing.ids[i]);
        routing.weights.push_back(dump->routing.weights[i]);
      }
    }
    all.push_back(std::move(routing));
  }
  return all;
}

}  // namespace

void fill_token(std::uint64_t seed, std::int32_t group, std::int64_t token, std::int64_t hidden, float* out) {
  Random random(seed ^ kTokenSeed,
                (static_cast<std::uint64_t>(group) << 32) | static_cast<std::uint64_t>(token));
  for (std::int64_t h = 0; h < hidden; h += 2) {
    const std::uint32_t bits = random.next_u32();
    out[h] = static_cast<float>(static_cast<std::int16_t>(bits & 0xffffU)) / 32768.0F;
    if (h + 1 < hidden) out[h + 1] = static_cast<float>(static_cast<std::int16_t>(bits >> 16)) / 32768.0F;
  }
}

Workload::Workload(const Point& point, const ModelDump* dump)
    : point_(point),
      partition_{point.num_experts, point.ranks},
      routing_(route_all(point, dump, num_groups())) {
  const std::int64_t rows = num_groups() * point.tokens;
  tokens_.resize(static_cast<std::size_t>(rows * row_bytes()));
  scales_.resize(static_cast<std::size_t>(rows * num_scales()));
  const Quantisation how{.dtype = point.in_dtype, .scale = ScaleType::f32, .block = kScaleBlock};
  std::vector<float> values(static_cast<std::size_t>(point.hidden));
  for (std::int32_t g = 0; g < num_groups(); ++g)
    for (std::int64_t t = 0; t < routing(g).num_tokens; ++t) {
      if (dump == nullptr) {
        fill_token(point.seed, g, t, point.hidden, values.data());
      } else {
        const std::int64_t row = (g * point.tokens + t) % dump->num_tokens;
        std::copy_n(dump->x.begin() + row * point.hidden, point.hidden, values.begin());
      }
      const std::int64_t row = g * point.tokens + t;
      std::byte* to = tokens_.data() + row * row_bytes();
      if (is_fp8(point.in_dtype))
        pack_kernels().quantise(values.data(), DType::f32, point.hidden, how,
                                QuantisedRow{.elements = to, .scales = scales_.data() + row * num_scales()});
      else
        for (std::int64_t h = 0; h < point.hidden; ++h)
          store_element(point.in_dtype, to, h, values[static_cast<std::size_t>(h)]);
    }

  sent_.assign(static_cast<std::size_t>(point.ranks) * static_cast<std::size_t>(point.ranks), 0);
  for (std::int32_t rank = 0; rank < point.ranks; ++rank) {
    const TokenShare mine = share(rank);
    count_per_rank(routing(group_of(rank)).ids.data() + mine.begin * point.top_k,
                   (mine.end - mine.begin) * point.top_k, partition_,
                   sent_.data() + static_cast<std::ptrdiff_t>(rank) * point.ranks);
  }
}

TokenShare Workload::share(std::int32_t rank) const {
  return token_share(routing(group_of(rank)).num_tokens, point_.dp_size, rank % point_.dp_size);
}

std::int64_t Workload::num_scales() const noexcept {
  return is_fp8(point_.in_dtype) ? (point_.hidden + kScaleBlock - 1) / kScaleBlock : 0;
}

const std::byte* Workload::token(std::int32_t group, std::int64_t t) const noexcept {
  return tokens_.data() + (group * point_.tokens + t) * row_bytes();
}

const float* Workload::token_scales(std::int32_t group, std::int64_t t) const noexcept {
  return num_scales() == 0 ? nullptr : scales_.data() + (group * point_.tokens + t) * num_scales();
}

std::int64_t Workload::sent_rows(std::int32_t source, std::int32_t owner) const {
  return sent_[static_cast<std::size_t>(std::int64_t{source} * point_.ranks + owner)];
}

std::int64_t Workload::returned_rows(std::int32_t owner, std::int32_t rank) const {
  const std::int32_t first = group_of(rank) * point_.dp_size;
  std::int64_t rows = 0;
  for (std::int32_t member = first; member < first + point_.dp_size; ++member)
    rows += sent_rows(member, owner);
  return rows;
}

std::int64_t Workload::arriving_rows(std::int32_t owner) const {
  std::int64_t rows = 0;
  for (std::int32_t source = 0; source < point_.ranks; ++source) rows += sent_rows(source, owner);
  return rows;
}

std::int64_t Workload::max_arriving_rows() const {
  std::int64_t most = 0;
  for (std::int32_t owner = 0; owner < point_.ranks; ++owner) most = std::max(most, arriving_rows(owner));
  return most;
}

std::int64_t Workload::selections() const {
  std::int64_t rows = 0;
  for (const std::int64_t n : sent_) rows += n;
  return rows;
}

}  // namespace shunt::bench
