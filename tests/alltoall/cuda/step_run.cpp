#include "step_run.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <sstream>
#include <stdexcept>

#include <alltoall/formats.h>

namespace gpu {
namespace {

std::size_t at(std::int64_t i) {
  return static_cast<std::size_t>(i);
}

std::int64_t scale_row_bytes(const shunt::AllToAllConfig& c) {
  return c.scale == shunt::ScaleType::none
             ? 0
             : (c.hidden + c.scale_block - 1) / c.scale_block * oracle::bytes_of(c.scale);
}

}  // namespace

sweep::SweepCase make_gpu_case(std::uint64_t seed) {
  sweep::SweepCase what = sweep::make_case(seed);
  for (sweep::ObjectPlan& object : what.objects) {
    object.config.movement = shunt::Movement::automatic;
    object.config.path = shunt::Path::automatic;
    object.config.check_messages = false;
    object.config.check_replicas = false;
    object.config.record_waits = false;
    std::erase_if(object.steps, [](const sweep::StepPlan& step) {
      return step.outcome == sweep::Outcome::replicas_differ;
    });
  }
  return what;
}

ReceivedOnHost on_host(const shunt::AllToAllConfig& config, std::int32_t num_ranks, std::int32_t rank,
                       const shunt::cuda::Received& received) {
  ReceivedOnHost r;
  const std::int32_t local = shunt::ExpertPartition{config.num_experts, num_ranks}.count(rank);
  r.starts = {received.starts, at(local) + 1};
  r.counts = {received.counts, at(local)};
  if (received.counts_by_group != nullptr)
    r.counts_by_group = {received.counts_by_group, at(std::int64_t{local} * (num_ranks / config.dp_size))};
  r.num_rows = *received.num_rows;
  const std::int64_t bytes = scale_row_bytes(config);
  for (std::int64_t row = 0; row < r.starts[at(local)]; ++row) {
    if (config.delivery == shunt::Delivery::view) {
      r.rows.push_back(static_cast<const std::byte*>(received.row_pointers[row]));
      if (bytes != 0) r.scales.push_back(static_cast<const std::byte*>(received.scale_pointers[row]));
    } else {
      r.rows.push_back(static_cast<const std::byte*>(received.rows.data) + row * received.rows.stride_bytes);
      if (bytes != 0) r.scales.push_back(static_cast<const std::byte*>(received.scales) + row * bytes);
    }
  }
  return r;
}

StepRun::StepRun(const sweep::ObjectPlan& object, const sweep::StepPlan& step, oracle::Reference& reference,
                 std::int32_t rank)
    : step_(&step),
      config_(&object.config),
      reference_(&reference),
      rank_(rank),
      group_(rank / object.config.dp_size),
      given_(step.given[at(group_)]),
      expected_(reference.received(rank)),
      tokens_(given_, object.config.hidden * oracle::bytes_of(object.config.token_dtype),
              oracle::bytes_of(object.config.token_dtype), step.strided ? 3 : 0, step.strided ? 3 : 0),
      results_(static_cast<std::int64_t>(expected_.expert_of_row.size()),
               object.config.hidden * oracle::bytes_of(object.config.expert_dtype),
               oracle::bytes_of(object.config.expert_dtype), step.strided ? 1 : 0, step.strided ? 1 : 0),
      out_(given_, object.config.hidden * oracle::bytes_of(object.config.out_dtype),
           oracle::bytes_of(object.config.out_dtype), step.strided ? 5 : 0, step.strided ? 5 : 0),
      live_(static_cast<std::int32_t>(step.live[at(group_)])) {
  const oracle::GroupInput& mine = input();
  const std::int64_t row_bytes = config_->hidden * oracle::bytes_of(config_->token_dtype);
  for (std::int64_t t = 0; t < mine.num_tokens; ++t)
    std::memcpy(tokens_.row(t), mine.tokens.data() + t * row_bytes, at(row_bytes));
  scales_ = mine.scales;
  if (config_->payload == config_->token_dtype) scales_.resize(at(given_ * scale_row_bytes(*config_)));

  fill_ids(mine.ids);

  const std::int64_t weight_stride = config_->top_k + (step.strided ? 1 : 0);
  weights_.assign(at(given_ * weight_stride), std::nanf(""));
  for (std::size_t i = 0; i < mine.ids.size(); ++i)
    if (mine.ids[i] >= 0)
      weights_[at(static_cast<std::int64_t>(i) / config_->top_k * weight_stride +
                  static_cast<std::int64_t>(i) % config_->top_k)] = mine.weights[i];

  const std::int64_t out_width = oracle::bytes_of(config_->out_dtype);
  const std::int64_t out_bytes = config_->hidden * out_width;
  for (std::int64_t t = 0; t < given_; ++t) std::memset(out_.row(t), 0x5b, at(out_bytes));
  if (!step.accumulate) return;
  old_.resize(at(mine.num_tokens * out_bytes));
  for (std::size_t i = 0; i < old_.size() / at(out_width); ++i)
    oracle::encode(config_->out_dtype, static_cast<double>(i % 97) / 8.0 - 6.0,
                   old_.data() + i * at(out_width));
  for (std::int64_t t = 0; t < mine.num_tokens; ++t)
    std::memcpy(out_.row(t), old_.data() + t * out_bytes, at(out_bytes));
}

void StepRun::fill_ids(const std::vector<std::int64_t>& ids) {
  const std::int64_t stride = config_->top_k + (step_->strided ? 2 : 0);
  const std::int64_t refused = config_->num_experts + 5;  // an error where it is read
  wide_ids_.assign(at(given_ * stride), refused);
  for (std::size_t i = 0; i < ids.size(); ++i)
    wide_ids_[at(static_cast<std::int64_t>(i) / config_->top_k * stride +
                 static_cast<std::int64_t>(i) % config_->top_k)] = ids[i];
  narrow_ids_.clear();
  for (const std::int64_t id : wide_ids_) narrow_ids_.push_back(static_cast<std::int32_t>(id));
}

const oracle::GroupInput& StepRun::input() const {
  return reference_->step().groups[at(group_)];
}

template <class... Parts>
void StepRun::require(bool ok, const Parts&... parts) const {
  if (ok) return;
  std::ostringstream stream;
  stream << "rank " << rank_ << ": ";
  (stream << ... << parts);
  throw std::runtime_error(stream.str());
}

shunt::cuda::TokenInput StepRun::tokens() {
  const bool scaled = config_->payload == config_->token_dtype && !scales_.empty();
  return {{tokens_.data(), config_->token_dtype, tokens_.stride()},
          given_,
          scaled ? scales_.data() : nullptr,
          step_->use_live_tokens ? &live_ : nullptr};
}

shunt::cuda::TokenInput StepRun::tokens_in(const shunt::cuda::DeviceRows& buffer) {
  shunt::cuda::TokenInput given = tokens();
  if (buffer.data == nullptr || !step_->tokens_in_place) return given;
  given.tokens = buffer;
  return given;
}

void StepRun::write_tokens(const shunt::cuda::TokenInput& to) {
  if (to.tokens.data == tokens_.data()) return;
  for (std::int64_t t = 0; t < input().num_tokens; ++t)
    std::memcpy(static_cast<std::byte*>(to.tokens.data) + t * to.tokens.stride_bytes, tokens_.row(t),
                at(config_->hidden * oracle::bytes_of(config_->token_dtype)));
}

shunt::cuda::ExpertIds StepRun::ids() {
  const std::int64_t stride = step_->strided ? config_->top_k + 2 : 0;
  if (step_->ids_64) return {wide_ids_.data(), true, stride};
  return {narrow_ids_.data(), false, stride};
}

shunt::cuda::DeviceRows StepRun::results(const shunt::cuda::DeviceRows& expert_output) {
  if (step_->outputs_in_place && expert_output.data != nullptr) return expert_output;
  return {results_.data(), config_->expert_dtype, results_.stride()};
}

shunt::cuda::Weights StepRun::weights() {
  return {weights_.data(), step_->strided ? config_->top_k + 1 : 0};
}

shunt::cuda::DeviceRows StepRun::out() {
  return {out_.data(), config_->out_dtype, out_.stride()};
}

void StepRun::check_received(const ReceivedOnHost& received) const {
  if (is_void()) {
    for (const std::int32_t start : received.starts)
      require(start == 0, "an expert of a void step begins at row ", start);
    return require(received.num_rows == 0, received.num_rows, " rows of a void step");
  }
  const auto differ = [this](const char* name, const auto& have, const auto& want) {
    require(have.size() == want.size(), name, " has ", have.size(), " elements, not ", want.size());
    for (std::size_t i = 0; i < want.size(); ++i)
      require(have[i] == want[i], name, "[", i, "] is ", have[i], ", not ", want[i]);
  };
  differ("starts", received.starts, expected_.starts);
  differ("counts", received.counts, expected_.counts);
  if (config_->counts_by_group)
    differ("counts_by_group", received.counts_by_group, expected_.counts_by_group);
  require(received.num_rows == expected_.num_rows, "num_rows is ", received.num_rows, ", not ",
          expected_.num_rows);
  const std::size_t slots = expected_.expert_of_row.size();
  const std::size_t row_bytes = slots == 0 ? 0 : expected_.rows.size() / slots;
  const std::size_t scale_bytes = slots == 0 ? 0 : expected_.scales.size() / slots;
  for (std::size_t row = 0; row < slots; ++row) {
    const std::int64_t expert = expected_.expert_of_row[row];
    if (expert < 0 && config_->delivery == shunt::Delivery::view) {
      require(received.rows[row] == nullptr && (received.scales.empty() || received.scales[row] == nullptr),
              "padding row ", row, " of a view is not null");
      continue;
    }
    if (expert < 0 && config_->padding == shunt::PaddingRows::untouched) continue;
    require(std::memcmp(received.rows[row], expected_.rows.data() + row * row_bytes, row_bytes) == 0, "row ",
            row, " (expert ", expert, ") differs");
    if (scale_bytes != 0)
      require(
          std::memcmp(received.scales[row], expected_.scales.data() + row * scale_bytes, scale_bytes) == 0,
          "scales of row ", row, " (expert ", expert, ") differ");
  }
}

void StepRun::run_experts(const ReceivedOnHost& received, const shunt::cuda::DeviceRows& results) const {
  if (is_void()) return;
  for (std::size_t row = 0; row < expected_.expert_of_row.size(); ++row) {
    std::byte* const to =
        static_cast<std::byte*>(results.data) + static_cast<std::int64_t>(row) * results.stride_bytes;
    const std::int64_t expert = expected_.expert_of_row[row];
    if (expert < 0)
      std::memset(to, 0xff,
                  at(config_->hidden * oracle::bytes_of(config_->expert_dtype)));  // NaN, if it is read
    else
      oracle::run_expert(*config_, expert, received.rows[row],
                         received.scales.empty() ? nullptr : received.scales[row], to);
  }
}

void StepRun::check_out() {
  const std::int64_t width = oracle::bytes_of(config_->out_dtype);
  const std::int64_t row_bytes = config_->hidden * width;
  const std::int64_t live = is_void() ? 0 : input().num_tokens;
  const auto expected = reference_->combined(group_, step_->accumulate ? old_.data() : nullptr);
  for (std::int64_t t = 0; t < given_; ++t) {
    if (t >= live) {
      const bool kept = is_void() && step_->accumulate && t < input().num_tokens;
      for (std::int64_t i = 0; i < row_bytes; ++i)
        require(out_.row(t)[i] == (kept ? old_[at(t * row_bytes + i)] : std::byte{0x5b}), "output of token ",
                t, " was written, but the step ", is_void() ? "is void" : "has fewer live ones");
      continue;
    }
    for (std::int64_t h = 0; h < config_->hidden; ++h) {
      const std::byte* have = out_.row(t) + h * width;
      const std::byte* want = expected.bits.data() + (t * config_->hidden + h) * width;
      const double value = oracle::decode(config_->out_dtype, have);
      if (std::isnan(oracle::decode(config_->out_dtype, want))) {
        require(std::isnan(value), "token ", t, " element ", h, " is ", value, ", not NaN");
        continue;
      }
      require(std::memcmp(have, want, at(width)) == 0, "token ", t, " element ", h, " is ", value,
              ", not the bits of ", oracle::decode(config_->out_dtype, want));
    }
  }
  require(out_.guards_intact(), "combine_recv wrote outside its output rows");
  require(results_.guards_intact(), "something wrote outside the results");
}

void StepRun::scribble_tokens() {
  tokens_.scribble();
  std::fill(scales_.begin(), scales_.end(), std::byte{0xdd});
  std::fill(wide_ids_.begin(), wide_ids_.end(), config_->num_experts + 5);
  std::fill(narrow_ids_.begin(), narrow_ids_.end(), config_->num_experts + 5);
  live_ = -7;
}

std::vector<StepRun::Region> StepRun::regions() {
  const auto rows = [](GuardedRows& r, std::int64_t count) {
    return Region{r.data() - 64, at(count * r.stride() + 128)};
  };
  return {rows(tokens_, given_),
          rows(results_, static_cast<std::int64_t>(expected_.expert_of_row.size())),
          rows(out_, given_),
          {scales_.data(), scales_.size()},
          {wide_ids_.data(), wide_ids_.size() * 8},
          {narrow_ids_.data(), narrow_ids_.size() * 4},
          {weights_.data(), weights_.size() * 4},
          {&live_, sizeof(live_)}};
}

}  // namespace gpu
