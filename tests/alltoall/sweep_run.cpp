#include <alltoall/sweep_run.h>

#include <cctype>
#include <cmath>
#include <cstring>
#include <memory>
#include <optional>
#include <sstream>
#include <string>

#include <alltoall/formats.h>
#include <alltoall/guarded_rows.h>
#include <shunt/alltoall/all_to_all.h>
#include <shunt/core/error.h>
#include <shunt/core/random.h>
#include <shunt/transport/transport.h>

namespace sweep {
namespace {

using shunt::Errc;
using shunt::Error;

std::size_t at(std::int64_t index) {
  return static_cast<std::size_t>(index);
}

template <class... Parts>
std::string text(const Parts&... parts) {
  std::ostringstream stream;
  (stream << ... << parts);
  return stream.str();
}

/// Whether `message` contains `words`, not as part of a longer word or number. (std::regex is not free of
/// data races.)
bool says(const std::string& message, const std::string& words) {
  const auto in_word = [&message](std::size_t i) {
    return i < message.size() && std::isalnum(static_cast<unsigned char>(message[i])) != 0;
  };
  for (std::size_t i = message.find(words); i != std::string::npos; i = message.find(words, i + 1))
    if ((i == 0 || !in_word(i - 1)) && !in_word(i + words.size())) return true;
  return false;
}

bool is_nan(shunt::DType dtype, const std::byte* element) {
  return std::isnan(oracle::decode(dtype, element));
}

/// One AllToAll of a case and where it stands in its steps.
class ObjectRun {
 public:
  ObjectRun(shunt::Transport& transport, const ObjectPlan& plan, std::vector<std::byte>& log)
      : plan_(plan),
        config_(plan.config),
        rank_(transport.world().rank),
        group_(rank_ / config_.dp_size),
        log_(log),
        object_(transport, config_) {
    check_sizes();
  }

  [[nodiscard]] bool done() const { return step_at_ == plan_.steps.size(); }

  /// The next call of the step.
  void advance() {
    try {
      switch (phase_) {
        case 0:
          dispatch_send();
          break;
        case 1:
          if (!dispatch_recv()) phase_ = 3;  // a void step ends here
          break;
        case 2:
          combine_send();
          break;
        default:
          combine_recv();
      }
    } catch (const Error& error) {
      throw Error(error.code(),
                  text("step ", step_at_, " rank ", rank_, " call ", phase_, ": ", error.what()));
    }
    if (phase_ == 3) ++step_at_;
    phase_ = (phase_ + 1) % 4;
  }

 private:
  template <class... Parts>
  void require(bool ok, const Parts&... parts) const {
    if (!ok) throw Error(Errc::check_failed, text(parts...));
  }

  void log(const void* data, std::int64_t bytes) {
    const auto* begin = static_cast<const std::byte*>(data);
    log_.insert(log_.end(), begin, begin + bytes);
  }

  [[nodiscard]] const StepPlan& step() const { return plan_.steps[step_at_]; }
  [[nodiscard]] const oracle::GroupInput& input() const { return reference_->step().groups[at(group_)]; }
  [[nodiscard]] std::int64_t token_row_bytes() const {
    return config_.hidden * oracle::bytes_of(config_.token_dtype);
  }

  void check_sizes() {
    const auto size = shunt::workspace_size(config_, plan_.num_ranks);
    require(object_.workspace_bytes() >= size.rows + size.outputs + size.tokens + size.messages,
            "workspace_bytes ", object_.workspace_bytes(), " below workspace_size ", size.total());
    require(object_.expert_output().rows == object_.max_rows(), "expert_output has ",
            object_.expert_output().rows, " rows, max_rows is ", object_.max_rows());
    const bool quantises = config_.payload != config_.token_dtype;
    require(object_.token_buffer().rows == (quantises ? 0 : config_.max_tokens), "token_buffer has ",
            object_.token_buffer().rows, " rows");
  }

  /// This rank's tokens and ids, as the group's or, for the odd member, changed in one place.
  oracle::GroupInput brought() const {
    oracle::GroupInput mine = input();
    if (step().outcome != Outcome::replicas_differ || step().odd_rank != rank_) return mine;
    if (step().odd_ids && mine.ids.back() >= 0)
      mine.ids.back() = -1;
    else
      mine.tokens.back() ^= std::byte{1};
    return mine;
  }

  void dispatch_send() {
    reference_.emplace(make_step(plan_, step()));
    counters_before_ = object_.byte_counters();
    const oracle::GroupInput mine = brought();
    const std::int64_t given = step().given[at(group_)];
    const std::int64_t row_bytes = token_row_bytes();
    const std::int64_t apart = step().strided ? 3 : 0;
    GuardedRows outside(given, row_bytes, oracle::bytes_of(config_.token_dtype), apart, apart);
    shunt::Rows tokens(outside.data(), given, config_.hidden, config_.token_dtype, outside.stride());
    if (step().tokens_in_place) {
      const auto buffer = object_.token_buffer();
      tokens = shunt::Rows(buffer.data, given, config_.hidden, config_.token_dtype, buffer.row_stride_bytes);
    }
    for (std::int64_t t = 0; t < mine.num_tokens; ++t)
      std::memcpy(const_cast<std::byte*>(tokens.row(t)), mine.tokens.data() + t * row_bytes, at(row_bytes));
    if (given == 0) tokens = shunt::Rows(nullptr, 0, config_.hidden, config_.token_dtype);

    oracle::Bytes outside_scales = mine.scales;
    void* scales = outside_scales.data();
    if (step().scales_in_place && !mine.scales.empty()) {
      scales = object_.token_scales();
      std::memcpy(scales, mine.scales.data(), mine.scales.size());
    }
    if (config_.payload != config_.token_dtype || mine.scales.empty()) scales = nullptr;
    auto live = static_cast<std::int32_t>(step().live[at(group_)]);
    const shunt::TokenInput sent{tokens, scales, step().use_live_tokens ? &live : nullptr};
    if (step().ids_64)
      send<std::int64_t>(sent, mine.ids, given);
    else
      send<std::int32_t>(sent, mine.ids, given);
    // Everything outside the token buffer is the caller's again.
    outside.scribble();
    std::fill(outside_scales.begin(), outside_scales.end(), std::byte{0xdd});
    live = -7;
  }

  template <class Id>
  void send(const shunt::TokenInput& sent, const std::vector<std::int64_t>& ids, std::int64_t given) {
    const std::int64_t stride = config_.top_k + (step().strided ? 2 : 0);
    const auto refused = static_cast<Id>(config_.num_experts + 5);  // an error where it is read
    std::vector<Id> matrix(at(given * stride), refused);
    for (std::size_t i = 0; i < ids.size(); ++i) {
      const auto row = static_cast<std::int64_t>(i) / config_.top_k;
      matrix[at(row * stride + static_cast<std::int64_t>(i) % config_.top_k)] = static_cast<Id>(ids[i]);
    }
    dispatched_.emplace(
        object_.dispatch_send(sent, shunt::View2<const Id>(matrix.data(), given, config_.top_k, stride)));
    std::fill(matrix.begin(), matrix.end(), refused);
  }

  /// False for a void step.
  bool dispatch_recv() {
    std::optional<Error> raised;
    try {
      received_ = object_.dispatch_recv(std::move(*dispatched_));
    } catch (const Error& error) {
      if (step().outcome == Outcome::normal) throw;
      raised = error;
    }
    if (step().outcome == Outcome::normal) {
      check_received();
      return true;
    }
    const bool overflow = step().outcome == Outcome::overflow;
    require(raised.has_value(), "no error, although ", overflow ? "rows overflow" : "replicas differ");
    const Errc wanted = overflow ? Errc::overflow : Errc::invalid_argument;
    require(raised->code() == wanted, "wrong error ", errc_name(raised->code()), ": ", raised->what());
    if (overflow) check_overflow_text(raised->what());
    return false;
  }

  /// The message names a rank that overflows and the rows it needs.
  void check_overflow_text(const std::string& message) const {
    const auto arrivals = reference_->arrivals();
    for (std::size_t rank = 0; rank < arrivals.size(); ++rank) {
      if (arrivals[rank] <= config_.max_recv_rows) continue;
      if (says(message, text("rank ", rank)) && says(message, text(arrivals[rank]))) return;
    }
    require(false, "names no overflowing rank with the rows it needs: ", message);
  }

  [[nodiscard]] const std::byte* received_row(std::int64_t row) const {
    if (config_.delivery == shunt::Delivery::rows) return received_.rows.row(row);
    return static_cast<const std::byte*>(received_.row_pointers[at(row)]);
  }
  [[nodiscard]] const std::byte* received_scales(std::int64_t row) const {
    if (config_.scale == shunt::ScaleType::none) return nullptr;
    if (config_.delivery == shunt::Delivery::view)
      return static_cast<const std::byte*>(received_.scale_pointers[at(row)]);
    const std::int64_t bytes = static_cast<std::int64_t>(expected_.scales.size()) / num_slots();
    return static_cast<const std::byte*>(received_.scales) + row * bytes;
  }
  [[nodiscard]] std::int64_t num_slots() const {
    return static_cast<std::int64_t>(expected_.expert_of_row.size());
  }

  void check_numbers() const {
    const auto differ = [this](const char* name, const auto& have, const auto& want) {
      require(have.size() == want.size(), name, " has ", have.size(), " elements, not ", want.size());
      for (std::size_t i = 0; i < want.size(); ++i)
        require(have[i] == want[i], name, "[", i, "] is ", have[i], ", not ", want[i]);
    };
    differ("starts", received_.starts, expected_.starts);
    differ("counts", received_.counts, expected_.counts);
    require(received_.num_rows == expected_.num_rows, "num_rows is ", received_.num_rows, ", not ",
            expected_.num_rows);
    require(num_slots() <= object_.max_rows(), num_slots(), " rows, but max_rows is ", object_.max_rows());
    const auto& by_group = received_.counts_by_group;
    if (!config_.counts_by_group) {
      require(by_group.rows == 0, "counts_by_group filled without being asked for");
      return;
    }
    const auto groups = static_cast<std::int64_t>(step().live.size());
    require(by_group.rows == static_cast<std::int64_t>(expected_.counts.size()) && by_group.cols == groups,
            "counts_by_group is [", by_group.rows, ", ", by_group.cols, "]");
    for (std::int64_t e = 0; e < by_group.rows; ++e)
      for (std::int64_t g = 0; g < groups; ++g)
        require(by_group(e, g) == expected_.counts_by_group[at(e * groups + g)], "counts_by_group(", e, ", ",
                g, ") is ", by_group(e, g));
  }

  void check_received() {
    expected_ = reference_->received(rank_);
    check_numbers();
    const bool view = config_.delivery == shunt::Delivery::view;
    const std::int64_t slots = num_slots();
    if (view) {
      require(static_cast<std::int64_t>(received_.row_pointers.size()) == slots, "row_pointers has ",
              received_.row_pointers.size(), " elements, not ", slots);
    } else {
      require(received_.rows.rows == slots && received_.rows.hidden == config_.hidden &&
                  received_.rows.dtype == config_.payload,
              "rows are [", received_.rows.rows, ", ", received_.rows.hidden, "], not [", slots, ", ",
              config_.hidden, "] of the payload dtype");
    }
    for (std::int64_t row = 0; row < slots; ++row) {
      const bool padding = expected_.expert_of_row[at(row)] < 0;
      if (padding && view) {
        require(received_row(row) == nullptr && received_scales(row) == nullptr, "padding row ", row,
                " of a view is not null");
        continue;
      }
      if (padding && config_.padding == shunt::PaddingRows::untouched) continue;
      check_bytes("row", row, received_row(row), expected_.rows);
      if (config_.scale != shunt::ScaleType::none)
        check_bytes("scales of row", row, received_scales(row), expected_.scales);
    }
    log(expected_.starts.data(), static_cast<std::int64_t>(expected_.starts.size() * sizeof(std::int64_t)));
  }

  void check_bytes(const char* name, std::int64_t row, const std::byte* have, const oracle::Bytes& all) {
    const std::int64_t bytes = static_cast<std::int64_t>(all.size()) / num_slots();
    const std::byte* want = all.data() + row * bytes;
    require(have != nullptr, name, " ", row, " is null");
    for (std::int64_t i = 0; std::memcmp(have, want, at(bytes)) != 0 && i < bytes; ++i)
      require(have[i] == want[i], name, " ", row, " (expert ", expected_.expert_of_row[at(row)], ") byte ", i,
              " is ", std::to_integer<int>(have[i]), ", not ", std::to_integer<int>(want[i]));
    log(have, bytes);
  }

  void combine_send() {
    const std::int64_t slots = num_slots();
    const std::int64_t width = oracle::bytes_of(config_.expert_dtype);
    const std::int64_t apart = step().strided ? 1 : 0;
    GuardedRows outside(step().outputs_in_place ? 0 : slots, config_.hidden * width, width, apart, apart);
    shunt::MutableRows results(outside.data(), slots, config_.hidden, config_.expert_dtype, outside.stride());
    if (step().outputs_in_place) {
      const auto place = object_.expert_output();
      results =
          shunt::MutableRows(place.data, slots, config_.hidden, config_.expert_dtype, place.row_stride_bytes);
    }
    for (std::int64_t row = 0; row < slots; ++row) {
      const std::int64_t expert = expected_.expert_of_row[at(row)];
      if (expert < 0)
        std::memset(results.row(row), 0xff, at(config_.hidden * width));  // NaN, if anybody reads it
      else
        oracle::run_expert(config_, expert, received_row(row), received_scales(row), results.row(row));
    }
    combined_.emplace(object_.combine_send(results));
    outside.scribble();
    require(outside.guards_intact(), "combine_send wrote to the results");
  }

  void combine_recv() {
    const std::int64_t given = step().given[at(group_)];
    const std::int64_t live = input().num_tokens;
    const std::int64_t width = oracle::bytes_of(config_.out_dtype);
    const std::int64_t row_bytes = config_.hidden * width;
    const std::int64_t apart = step().strided ? 5 : 0;
    GuardedRows out(given, row_bytes, width, apart, apart);
    oracle::Bytes old(at(live * row_bytes), std::byte{0x5b});  // a finite number in every dtype
    for (std::int64_t t = 0; t < given; ++t) std::memset(out.row(t), 0x5b, at(row_bytes));
    if (step().accumulate) {
      for (std::size_t i = 0; i < old.size() / at(width); ++i)
        oracle::encode(config_.out_dtype, static_cast<double>(i % 97) / 8.0 - 6.0,
                       old.data() + i * at(width));
      for (std::int64_t t = 0; t < live; ++t)
        std::memcpy(out.row(t), old.data() + t * row_bytes, at(row_bytes));
    }
    const std::int64_t stride = config_.top_k + (step().strided ? 1 : 0);
    const float unread = std::nanf("");
    std::vector<float> weights(at(given * stride), unread);
    for (std::size_t i = 0; i < input().ids.size(); ++i) {
      const auto k = static_cast<std::int64_t>(i) % config_.top_k;
      const std::int64_t token = static_cast<std::int64_t>(i) / config_.top_k;
      if (input().ids[i] >= 0) weights[at(token * stride + k)] = input().weights[i];
    }
    object_.combine_recv(std::move(*combined_), {weights.data(), given, config_.top_k, stride},
                         {out.data(), given, config_.hidden, config_.out_dtype, out.stride()},
                         step().accumulate);

    const auto expected = reference_->combined(group_, step().accumulate ? old.data() : nullptr);
    for (std::int64_t t = 0; t < live; ++t) check_output(t, out.row(t), expected);
    for (std::int64_t t = live; t < given; ++t)
      for (std::int64_t i = 0; i < row_bytes; ++i)
        require(out.row(t)[i] == std::byte{0x5b}, "output of token ", t, " beyond the ", live,
                " live ones was written");
    require(out.guards_intact(), "combine_recv wrote outside its output rows");
    check_counters();
  }

  void check_output(std::int64_t token, const std::byte* out, const oracle::ExpectedOutput& expected) {
    const std::int64_t width = oracle::bytes_of(config_.out_dtype);
    for (std::int64_t h = 0; h < config_.hidden; ++h) {
      const std::int64_t element = token * config_.hidden + h;
      const std::byte* have = out + h * width;
      const std::byte* want = expected.bits.data() + element * width;
      const double value = oracle::decode(config_.out_dtype, have);
      if (is_nan(config_.out_dtype, want)) {
        require(std::isnan(value), "token ", token, " element ", h, " is ", value, ", not NaN");
        log(want, width);
        continue;
      }
      require(std::memcmp(have, want, at(width)) == 0, "token ", token, " element ", h, " is ", value,
              ", not the bits of ", oracle::decode(config_.out_dtype, want));
      log(have, width);
      const double sum = expected.sum[at(element)];
      if (std::isfinite(value) && std::isfinite(sum))
        require(std::fabs(value - sum) <= expected.slack[at(element)], "token ", token, " element ", h,
                " is ", value, ", the sum in double is ", sum);
    }
  }

  void check_counters() {
    const auto& now = object_.byte_counters();
    const std::int64_t staged_tokens = now.staged_tokens - counters_before_.staged_tokens;
    const std::int64_t staged_outputs = now.staged_outputs - counters_before_.staged_outputs;
    if (step().tokens_in_place && (step().scales_in_place || input().scales.empty()))
      require(staged_tokens == 0, staged_tokens, " bytes of tokens copied that lay in token_buffer()");
    const std::int64_t result_bytes = config_.hidden * oracle::bytes_of(config_.expert_dtype);
    const std::int64_t elsewhere = step().outputs_in_place ? 0 : expected_.num_rows * result_bytes;
    require(staged_outputs == elsewhere, staged_outputs, " bytes of results copied, not ", elsewhere);
    if (config_.delivery == shunt::Delivery::view)
      require(now.moved_rows == 0, now.moved_rows, " bytes of rows moved by a view");
    const auto buffer = object_.token_buffer();
    for (std::int64_t t = 0; step().tokens_in_place && t < input().num_tokens; ++t)
      require(std::memcmp(buffer.row(t), input().tokens.data() + t * token_row_bytes(),
                          at(token_row_bytes())) == 0,
              "token ", t, " in token_buffer() changed");
  }

  const ObjectPlan& plan_;
  const shunt::AllToAllConfig& config_;
  std::int32_t rank_, group_;
  std::vector<std::byte>& log_;
  shunt::AllToAll object_;
  std::size_t step_at_ = 0;
  int phase_ = 0;
  std::optional<oracle::Reference> reference_;
  oracle::ExpectedRows expected_;
  shunt::ByteCounters counters_before_;
  std::optional<shunt::Sent<shunt::Half::dispatch>> dispatched_;
  std::optional<shunt::Sent<shunt::Half::combine>> combined_;
  shunt::Received received_;
};

}  // namespace

std::vector<std::byte> run_case(shunt::Transport& transport, const SweepCase& what) {
  std::vector<std::byte> log;
  std::vector<std::unique_ptr<ObjectRun>> runs;
  std::size_t current = 0;
  try {
    for (const auto& plan : what.objects) {
      current = runs.size();
      runs.push_back(std::make_unique<ObjectRun>(transport, plan, log));
    }
    // Which object makes its next call is drawn, alike on every rank.
    shunt::Random order(what.seed, 2);
    for (;;) {
      std::vector<std::size_t> unfinished;
      for (std::size_t i = 0; i < runs.size(); ++i)
        if (!runs[i]->done()) unfinished.push_back(i);
      if (unfinished.empty()) return log;
      current = unfinished[order.below(unfinished.size())];
      runs[current]->advance();
    }
  } catch (const Error& error) {
    throw Error(error.code(),
                text("object ", current, " (", describe(what.objects[current]), ") ", error.what()));
  }
}

}  // namespace sweep
