#include <alltoall/oracle.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include <alltoall/formats.h>

namespace oracle {
namespace {

std::int64_t scales_per_row(const shunt::AllToAllConfig& config) {
  if (config.scale == shunt::ScaleType::none) return 0;
  return config.hidden / config.scale_block + (config.hidden % config.scale_block != 0 ? 1 : 0);
}

std::int64_t next_multiple(std::int64_t value, std::int64_t of) {
  while (value % of != 0) ++value;
  return value;
}

}  // namespace

void run_expert(const shunt::AllToAllConfig& config, std::int64_t expert, const std::byte* row,
                const std::byte* scales, std::byte* out) {
  const std::int64_t in_bytes = bytes_of(config.payload);
  const std::int64_t out_bytes = bytes_of(config.expert_dtype);
  const double factor = static_cast<double>(expert * 37 % 11 + 1) / 8.0;
  double scale = 1.0;
  for (std::int64_t h = 0; h < config.hidden; ++h) {
    if (h % config.scale_block == 0) scale = decode_scale(config.scale, scales, h / config.scale_block);
    const double sign = (h + expert) % 2 == 0 ? 1.0 : -1.0;
    encode(config.expert_dtype, decode(config.payload, row + h * in_bytes) * scale * factor * sign,
           out + h * out_bytes);
  }
}

Reference::Reference(Step step) : step_(std::move(step)) {
  const auto& config = step_.config;
  for (std::int32_t rank = 0; rank < step_.num_ranks; ++rank) {
    const std::int32_t extra = rank < config.num_experts % step_.num_ranks ? 1 : 0;
    owner_.insert(owner_.end(), static_cast<std::size_t>(config.num_experts / step_.num_ranks + extra), rank);
  }
  for (std::size_t group = 0; group < step_.groups.size(); ++group) {
    const auto& ids = step_.groups[group].ids;
    for (std::size_t i = 0; i < ids.size(); ++i)
      if (ids[i] >= 0)
        choices_.push_back(
            {ids[i], static_cast<std::int64_t>(group), static_cast<std::int64_t>(i) / config.top_k});
  }
  std::sort(choices_.begin(), choices_.end());
}

const Reference::Wire& Reference::wire(std::int64_t group, std::int64_t token) {
  const auto [at, fresh] = wires_.try_emplace({group, token});
  if (!fresh) return at->second;
  const auto& config = step_.config;
  const auto& input = step_.groups[static_cast<std::size_t>(group)];
  const std::int64_t hidden = config.hidden;
  const std::int64_t token_bytes = bytes_of(config.token_dtype);
  const std::int64_t row_scales = scales_per_row(config);
  const std::byte* from = input.tokens.data() + token * hidden * token_bytes;
  auto& [row, scales] = at->second;
  scales.resize(static_cast<std::size_t>(row_scales * bytes_of(config.scale)));
  if (config.payload == config.token_dtype) {
    row.assign(from, from + hidden * token_bytes);
    const std::byte* from_scales = input.scales.data() + token * static_cast<std::int64_t>(scales.size());
    std::copy_n(from_scales, scales.size(), scales.begin());
    return at->second;
  }
  row.resize(static_cast<std::size_t>(hidden * bytes_of(config.payload)));
  const float largest = config.payload == shunt::DType::f8e4m3 ? 448.0F : 57344.0F;
  for (std::int64_t block = 0; block < row_scales; ++block) {
    const std::int64_t begin = block * config.scale_block;
    const std::int64_t end = std::min(hidden, begin + config.scale_block);
    double peak = 1e-4F;
    for (std::int64_t h = begin; h < end; ++h)
      peak = std::max(peak, std::fabs(double{decode(config.token_dtype, from + h * token_bytes)}));
    // A quotient of floats rounded to double and then to float is the correctly rounded quotient.
    double scale = static_cast<float>(peak / largest);
    if (config.scale == shunt::ScaleType::ue8m0) {
      const std::uint8_t byte = encode_ue8m0(scale);
      scales[static_cast<std::size_t>(block)] = std::byte{byte};
      scale = decode_ue8m0(byte);
    } else {
      encode(shunt::DType::f32, scale, scales.data() + 4 * block);
    }
    for (std::int64_t h = begin; h < end; ++h) {
      const auto quotient = static_cast<float>(decode(config.token_dtype, from + h * token_bytes) / scale);
      encode(config.payload, quotient, row.data() + h);
    }
  }
  return at->second;
}

ExpectedRows Reference::received(std::int32_t rank) {
  const auto& config = step_.config;
  const auto groups = static_cast<std::int64_t>(step_.groups.size());
  const auto row_bytes = static_cast<std::size_t>(config.hidden * bytes_of(config.payload));
  const auto scale_row_bytes = static_cast<std::size_t>(scales_per_row(config) * bytes_of(config.scale));
  const std::byte filler{config.padding == shunt::PaddingRows::poison ? std::uint8_t{0xff} : std::uint8_t{0}};
  ExpectedRows expected;
  const auto pad_to = [&](std::int64_t rows) {
    expected.expert_of_row.resize(static_cast<std::size_t>(rows), -1);
    expected.rows.resize(static_cast<std::size_t>(rows) * row_bytes, filler);
    expected.scales.resize(static_cast<std::size_t>(rows) * scale_row_bytes, filler);
  };
  for (std::int64_t expert = 0; expert < config.num_experts; ++expert) {
    if (owner_[static_cast<std::size_t>(expert)] != rank) continue;
    const auto start = static_cast<std::int64_t>(expected.expert_of_row.size());
    std::vector<std::int64_t> from_group(step_.groups.size(), 0);
    const auto first = std::lower_bound(choices_.begin(), choices_.end(), Choice{expert, 0, 0});
    for (auto choice = first; choice != choices_.end() && choice->expert == expert; ++choice) {
      const Wire& travels = wire(choice->group, choice->token);
      expected.expert_of_row.push_back(expert);
      expected.rows.insert(expected.rows.end(), travels.row.begin(), travels.row.end());
      expected.scales.insert(expected.scales.end(), travels.scales.begin(), travels.scales.end());
      ++from_group[static_cast<std::size_t>(choice->group)];
    }
    const auto count = static_cast<std::int64_t>(expected.expert_of_row.size()) - start;
    expected.starts.push_back(start);
    expected.counts.push_back(count);
    expected.counts_by_group.insert(expected.counts_by_group.end(), from_group.begin(), from_group.end());
    expected.num_rows += count;
    const bool padded = config.layout == shunt::RowLayout::padded;
    pad_to(start + next_multiple(padded ? groups * config.max_tokens : count, config.alignment));
  }
  expected.starts.push_back(static_cast<std::int64_t>(expected.expert_of_row.size()));
  return expected;
}

ExpectedOutput Reference::combined(std::int32_t group, const std::byte* old) {
  const auto& config = step_.config;
  const auto& input = step_.groups[static_cast<std::size_t>(group)];
  const auto hidden = static_cast<std::size_t>(config.hidden);
  const auto expert_bytes = static_cast<std::size_t>(bytes_of(config.expert_dtype));
  const auto out_bytes = static_cast<std::size_t>(bytes_of(config.out_dtype));
  const Format out_format = format_of(config.out_dtype);
  const double out_unit = std::ldexp(1.0, -out_format.fraction_bits);
  const double out_tiniest = std::ldexp(1.0, 1 - out_format.bias - out_format.fraction_bits);
  const auto elements = static_cast<std::size_t>(input.num_tokens) * hidden;
  ExpectedOutput expected{Bytes(elements * out_bytes), std::vector<double>(elements, 0.0),
                          std::vector<double>(elements, 0.0)};
  std::vector<float> acc(hidden);
  Bytes result(hidden * expert_bytes);
  for (std::size_t token = 0; token < static_cast<std::size_t>(input.num_tokens); ++token) {
    const std::size_t at = token * hidden;
    for (std::size_t h = 0; h < hidden; ++h) {
      acc[h] = old == nullptr ? 0.0F : decode(config.out_dtype, old + (at + h) * out_bytes);
      expected.sum[at + h] = acc[h];
      expected.slack[at + h] = std::fabs(acc[h]);
    }
    for (std::size_t k = 0; k < static_cast<std::size_t>(config.top_k); ++k) {
      const std::size_t choice = token * static_cast<std::size_t>(config.top_k) + k;
      const std::int64_t expert = input.ids[choice];
      if (expert < 0) continue;
      const Wire& travels = wire(group, static_cast<std::int64_t>(token));
      run_expert(config, expert, travels.row.data(), travels.scales.data(), result.data());
      for (std::size_t h = 0; h < hidden; ++h) {
        const float row = decode(config.expert_dtype, result.data() + h * expert_bytes);
        acc[h] = std::fma(input.weights[choice], row, acc[h]);
        const double term = double{input.weights[choice]} * row;
        expected.sum[at + h] += term;
        expected.slack[at + h] += std::fabs(term);
      }
    }
    for (std::size_t h = 0; h < hidden; ++h) {
      encode(config.out_dtype, acc[h], expected.bits.data() + (at + h) * out_bytes);
      // K roundings of partial sums in fp32, none above the sum of magnitudes, then one to the output.
      const double magnitude = expected.slack[at + h];
      expected.slack[at + h] = magnitude * (config.top_k + 1) * std::ldexp(1.0, -23) + magnitude * out_unit +
                               out_tiniest + double{std::numeric_limits<float>::denorm_min()} * config.top_k;
    }
  }
  return expected;
}

std::vector<std::int64_t> Reference::arrivals() const {
  std::vector<std::int64_t> rows(static_cast<std::size_t>(step_.num_ranks), 0);
  for (const Choice& choice : choices_)
    ++rows[static_cast<std::size_t>(owner_[static_cast<std::size_t>(choice.expert)])];
  return rows;
}

}  // namespace oracle
