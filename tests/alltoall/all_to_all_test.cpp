// The contract of AllToAll, call by call. Bits and layouts are the sweep's business (sweep_test.cpp).
#include <shunt/alltoall/all_to_all.h>

#include <cstring>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <shunt/core/error.h>
#include <shunt/transport/collectives.h>
#include <shunt/transport/launch.h>
#include <shunt/transport/transport.h>

namespace shunt {
namespace {

void expect(bool ok, const std::string& what) {
  if (!ok) throw Error(Errc::check_failed, what);
}

/// Runs `body` on `ranks` processes; what a rank throws fails the test.
void on_ranks(std::int32_t ranks, const std::function<void(Transport&)>& body) {
  const auto outcomes = run_ranks({.ranks = ranks}, [&body](Transport& transport) {
    body(transport);
    return 0;
  });
  ASSERT_EQ(outcomes.size(), static_cast<std::size_t>(ranks));
  for (const auto& outcome : outcomes)
    EXPECT_EQ(outcome.exit_status, 0) << "rank " << outcome.rank << ": " << outcome.message;
}

/// The text of the error that `call` raises, which must carry `code`.
template <class Call>
std::string error_of(Errc code, Call&& call) {
  try {
    call();
  } catch (const Error& error) {
    expect(error.code() == code, std::string("expected ") + errc_name(code) + ", got " +
                                     errc_name(error.code()) + ": " + error.what());
    return error.what();
  }
  throw Error(Errc::check_failed, std::string("expected ") + errc_name(code) + ", got no error");
}

void expect_says(const std::string& text, const std::string& part) {
  expect(text.find(part) != std::string::npos, "'" + text + "' does not say '" + part + "'");
}

constexpr std::int64_t kHidden = 5;

AllToAllConfig small_config() {
  AllToAllConfig config;
  config.max_tokens = 4;
  config.num_experts = 6;
  config.top_k = 2;
  config.hidden = kHidden;
  config.token_dtype = config.payload = config.expert_dtype = config.out_dtype = DType::f32;
  config.deadline = std::chrono::milliseconds(5000);
  return config;
}

/// One rank's input of a step: token t of rank r is filled with 100 r + t + 1; expert e multiplies by e + 1.
struct Step {
  std::vector<float> tokens, weights, out;
  std::vector<std::int32_t> ids;
  std::int64_t num_tokens;

  Step(std::int32_t rank, std::int64_t count, const AllToAllConfig& config)
      : out(static_cast<std::size_t>(count * config.hidden), -1.0F), num_tokens(count) {
    for (std::int64_t t = 0; t < count; ++t) {
      for (std::int64_t h = 0; h < config.hidden; ++h)
        tokens.push_back(static_cast<float>(100 * rank + t + 1));
      for (std::int32_t k = 0; k < config.top_k; ++k) {
        ids.push_back(static_cast<std::int32_t>((rank + t + 2 * k) % config.num_experts));
        weights.push_back(k == 0 ? 0.75F : 0.25F);
      }
    }
  }
  [[nodiscard]] View2<const std::int32_t> id_view(const AllToAllConfig& c) const {
    return {ids.data(), num_tokens, c.top_k};
  }
  [[nodiscard]] View2<const float> weight_view(const AllToAllConfig& c) const {
    return {weights.data(), num_tokens, c.top_k};
  }
  [[nodiscard]] Rows rows(const AllToAllConfig& c) const {
    return {tokens.data(), num_tokens, c.hidden, DType::f32};
  }
  [[nodiscard]] MutableRows out_rows(const AllToAllConfig& c) {
    return {out.data(), num_tokens, c.hidden, DType::f32};
  }

  void check(const AllToAllConfig& c, float start = 0.0F) const {
    for (std::int64_t t = 0; t < num_tokens; ++t)
      for (std::int64_t h = 0; h < c.hidden; ++h) {
        const auto at = static_cast<std::size_t>(t * c.hidden + h);
        float want = start;
        for (std::int32_t k = 0; k < c.top_k; ++k) {
          const auto i = static_cast<std::size_t>(t * c.top_k + k);
          if (ids[i] >= 0) want += weights[i] * tokens[at] * static_cast<float>(ids[i] + 1);
        }
        expect(out[at] == want, "token " + std::to_string(t) + ": " + std::to_string(out[at]) +
                                    " instead of " + std::to_string(want));
      }
  }
};

/// Expert e multiplies its rows by e + 1, into expert_output().
void run_experts(AllToAll& object, const Received& received, std::int32_t first_expert) {
  const MutableRows results = object.expert_output();
  for (std::size_t e = 0; e + 1 < received.starts.size(); ++e)
    for (std::int64_t i = 0; i < received.counts[e]; ++i) {
      const std::int64_t row = received.starts[e] + i;
      const void* from = received.row_pointers.empty() ? received.rows.row(row)
                                                       : received.row_pointers[static_cast<std::size_t>(row)];
      std::vector<float> values(static_cast<std::size_t>(results.hidden));
      std::memcpy(values.data(), from, values.size() * sizeof(float));
      for (float& value : values)
        value *= static_cast<float>(first_expert + static_cast<std::int32_t>(e) + 1);
      std::memcpy(results.row(row), values.data(), values.size() * sizeof(float));
    }
}

std::int32_t first_expert_of(const Transport& transport, const AllToAllConfig& config) {
  std::int32_t first = 0;
  for (std::int32_t rank = 0; rank < transport.world().rank; ++rank)
    first += config.num_experts / transport.world().size +
             (rank < config.num_experts % transport.world().size ? 1 : 0);
  return first;
}

void full_step(Transport& transport, AllToAll& object, Step& step) {
  const AllToAllConfig& config = object.config();
  auto sent = object.dispatch_send({.tokens = step.rows(config)}, step.id_view(config));
  const Received received = object.dispatch_recv(std::move(sent));
  run_experts(object, received, first_expert_of(transport, config));
  auto back = object.combine_send(object.expert_output());
  object.combine_recv(std::move(back), step.weight_view(config), step.out_rows(config));
}

TEST(AllToAllTest, CombinesWhatExpertsMadeForUnevenTokens) {
  for (const std::int32_t ranks : {1, 2, 3, 7}) {
    on_ranks(ranks, [](Transport& transport) {
      const AllToAllConfig config = small_config();
      AllToAll object(transport, config);
      for (std::int64_t step = 0; step < 6; ++step) {
        Step mine(transport.world().rank, (transport.world().rank + step) % 5, config);
        full_step(transport, object, mine);
        mine.check(config);
      }
    });
  }
}

TEST(AllToAllTest, KeepsTwoObjectsInFlight) {
  on_ranks(3, [](Transport& transport) {
    const AllToAllConfig config = small_config();
    AllToAll first(transport, config);
    AllToAll second(transport, config);
    const std::int32_t expert = first_expert_of(transport, config);
    for (int repeat = 0; repeat < 20; ++repeat) {
      Step a(transport.world().rank, 4, config);
      Step b(transport.world().rank + 1, 3, config);
      auto sent_a = first.dispatch_send({.tokens = a.rows(config)}, a.id_view(config));
      auto sent_b = second.dispatch_send({.tokens = b.rows(config)}, b.id_view(config));
      run_experts(first, first.dispatch_recv(std::move(sent_a)), expert);
      auto back_a = first.combine_send(first.expert_output());
      run_experts(second, second.dispatch_recv(std::move(sent_b)), expert);
      auto back_b = second.combine_send(second.expert_output());
      first.combine_recv(std::move(back_a), a.weight_view(config), a.out_rows(config));
      second.combine_recv(std::move(back_b), b.weight_view(config), b.out_rows(config));
      a.check(config);
      b.check(config);
    }
  });
}

TEST(AllToAllTest, RefusesCallsOutOfOrder) {
  on_ranks(2, [](Transport& transport) {
    const AllToAllConfig config = small_config();
    AllToAll object(transport, config);
    Step step(transport.world().rank, 2, config);
    auto sent = object.dispatch_send({.tokens = step.rows(config)}, step.id_view(config));
    // A send whose recv has not come: the next send must not touch what peers still read.
    expect_says(
        error_of(Errc::invalid_state,
                 [&] { (void)object.dispatch_send({.tokens = step.rows(config)}, step.id_view(config)); }),
        "dispatch_recv is next");
    expect_says(error_of(Errc::invalid_state, [&] { (void)object.combine_send(object.expert_output()); }),
                "out of order");
    const Received received = object.dispatch_recv(std::move(sent));
    error_of(Errc::invalid_state,
             [&] { (void)object.dispatch_recv(std::move(sent)); });  // NOLINT: used up on purpose
    run_experts(object, received, first_expert_of(transport, config));
    auto back = object.combine_send(object.expert_output());
    expect_says(
        error_of(Errc::invalid_state,
                 [&] { (void)object.dispatch_send({.tokens = step.rows(config)}, step.id_view(config)); }),
        "combine_recv is next");
    object.combine_recv(std::move(back), step.weight_view(config), step.out_rows(config));
    step.check(config);
  });
}

TEST(AllToAllTest, RefusesForeignReceipt) {
  on_ranks(1, [](Transport& transport) {
    const AllToAllConfig config = small_config();
    AllToAll first(transport, config);
    AllToAll second(transport, config);
    Step step(0, 1, config);
    auto sent_first = first.dispatch_send({.tokens = step.rows(config)}, step.id_view(config));
    auto sent_second = second.dispatch_send({.tokens = step.rows(config)}, step.id_view(config));
    expect_says(error_of(Errc::invalid_state, [&] { (void)first.dispatch_recv(std::move(sent_second)); }),
                "belongs to another AllToAll");
    (void)first.dispatch_recv(std::move(sent_first));
  });
}

TEST(AllToAllTest, NamesTokenAndExpertOfBadIdAndStaysUsable) {
  on_ranks(2, [](Transport& transport) {
    const AllToAllConfig config = small_config();
    AllToAll object(transport, config);
    Step step(transport.world().rank, 3, config);
    const auto try_id = [&](std::size_t place, std::int32_t id) {
      const std::int32_t old = std::exchange(step.ids[place], id);
      const std::string text = error_of(Errc::invalid_argument, [&] {
        (void)object.dispatch_send({.tokens = step.rows(config)}, step.id_view(config));
      });
      step.ids[place] = old;
      return text;
    };
    expect_says(try_id(3, 6), "token 1, k 1: expert id 6 is outside [-1, 5]");
    expect_says(try_id(0, -2), "token 0, k 0: expert id -2 is outside [-1, 5]");
    expect_says(try_id(5, step.ids[4]), "is named twice by this token");
    const std::vector<std::int64_t> wide(6, std::int64_t{1} << 33);
    expect_says(error_of(Errc::invalid_argument,
                         [&] {
                           (void)object.dispatch_send({.tokens = step.rows(config)},
                                                      View2<const std::int64_t>(wide.data(), 3, 2));
                         }),
                "expert id 8589934592");
    full_step(transport, object, step);
    step.check(config);
  });
}

TEST(AllToAllTest, RefusesShapesThatDoNotFit) {
  on_ranks(1, [](Transport& transport) {
    AllToAllConfig config = small_config();
    AllToAll object(transport, config);
    Step many(0, 5, config);
    expect_says(
        error_of(Errc::invalid_argument,
                 [&] { (void)object.dispatch_send({.tokens = many.rows(config)}, many.id_view(config)); }),
        "5 tokens; allowed are 0 to max_tokens = 4");
    Step step(0, 2, config);
    Rows narrow = step.rows(config);
    narrow.hidden = 4;
    expect_says(error_of(Errc::invalid_argument,
                         [&] { (void)object.dispatch_send({.tokens = narrow}, step.id_view(config)); }),
                "hidden 4");
    Rows half(step.tokens.data(), 2, kHidden, DType::f16);
    expect_says(error_of(Errc::invalid_argument,
                         [&] { (void)object.dispatch_send({.tokens = half}, step.id_view(config)); }),
                "float16");
    auto sent = object.dispatch_send({.tokens = step.rows(config)}, step.id_view(config));
    (void)object.dispatch_recv(std::move(sent));
    expect_says(
        error_of(Errc::invalid_argument,
                 [&] { (void)object.combine_send(Rows(step.tokens.data(), 1, kHidden, DType::f32)); }),
        "at least [4, 5] are needed");
    auto back = object.combine_send(object.expert_output());
    expect_says(error_of(Errc::invalid_argument,
                         [&] {
                           object.combine_recv(std::move(back), View2<const float>(step.weights.data(), 1, 2),
                                               step.out_rows(config));
                         }),
                "weights are [1, 2]");
    object.combine_recv(std::move(back), step.weight_view(config),
                        step.out_rows(config));  // NOLINT: still whole
  });
}

TEST(AllToAllTest, ReportsOverflowOnEveryRankAndGoesOn) {
  on_ranks(3, [](Transport& transport) {
    AllToAllConfig config = small_config();
    config.max_recv_rows = 7;
    AllToAll object(transport, config);
    for (int repeat = 0; repeat < 10; ++repeat) {
      Step crowd(transport.world().rank, 4, config);
      for (std::size_t i = 0; i < crowd.ids.size(); ++i) crowd.ids[i] = i % 2 == 0 ? 2 : 3;  // both on rank 1
      auto sent = object.dispatch_send({.tokens = crowd.rows(config)}, crowd.id_view(config));
      const std::string text = error_of(Errc::overflow, [&] { (void)object.dispatch_recv(std::move(sent)); });
      expect_says(text, "24 rows would arrive at rank 1, but max_recv_rows is 7");
      Step fits(transport.world().rank, 2, config);
      full_step(transport, object, fits);
      fits.check(config);
    }
  });
}

TEST(AllToAllTest, FindsReplicasThatDiffer) {
  on_ranks(4, [](Transport& transport) {
    AllToAllConfig config = small_config();
    config.dp_size = 2;
    config.check_replicas = true;
    AllToAll object(transport, config);
    Step step(transport.world().rank / 2, 4, config);
    Step other = step;
    if (transport.world().rank == 3) other.tokens[7] += 1.0F;
    auto sent = object.dispatch_send({.tokens = other.rows(config)}, other.id_view(config));
    expect_says(error_of(Errc::invalid_argument, [&] { (void)object.dispatch_recv(std::move(sent)); }),
                "ranks 2 and 3 of one group");
    full_step(transport, object, step);
    step.check(config);
  });
}

TEST(AllToAllTest, NamesTheConfigFieldInWhichRanksDiffer) {
  on_ranks(2, [](Transport& transport) {
    AllToAllConfig config = small_config();
    if (transport.world().rank == 1) config.hidden = 6;
    const std::string text = error_of(Errc::invalid_argument, [&] { AllToAll object(transport, config); });
    expect_says(text, "hidden = ");
    expect_says(text, transport.world().rank == 0 ? "rank 1 has 6" : "rank 0 has 5");
  });
}

TEST(AllToAllTest, TellsPeersOfARefusedConfig) {
  on_ranks(2, [](Transport& transport) {
    AllToAllConfig config = small_config();
    config.top_k = 7;
    expect_says(error_of(Errc::invalid_argument, [&] { AllToAll object(transport, config); }),
                "top_k is 7; allowed are 1 to num_experts = 6");
  });
}

TEST(AllToAllTest, ReadsLiveTokenCountAtTheCall) {
  on_ranks(2, [](Transport& transport) {
    const AllToAllConfig config = small_config();
    AllToAll object(transport, config);
    std::int32_t live = 0;
    for (live = 0; live <= 4; ++live) {
      Step all(transport.world().rank, 4, config);
      auto sent =
          object.dispatch_send({.tokens = all.rows(config), .live_tokens = &live}, all.id_view(config));
      run_experts(object, object.dispatch_recv(std::move(sent)), first_expert_of(transport, config));
      auto back = object.combine_send(object.expert_output());
      object.combine_recv(std::move(back), all.weight_view(config), all.out_rows(config));
      Step expected(transport.world().rank, live, config);
      std::copy_n(all.out.begin(), expected.out.size(), expected.out.begin());
      expected.check(config);
      for (std::size_t i = expected.out.size(); i < all.out.size(); ++i)
        expect(all.out[i] == -1.0F, "a row beyond the live count was written");
    }
  });
}

TEST(AllToAllTest, AccumulatesOntoOldValues) {
  on_ranks(2, [](Transport& transport) {
    const AllToAllConfig config = small_config();
    AllToAll object(transport, config);
    Step step(transport.world().rank, 3, config);
    step.out.assign(step.out.size(), 1000.0F);
    auto sent = object.dispatch_send({.tokens = step.rows(config)}, step.id_view(config));
    run_experts(object, object.dispatch_recv(std::move(sent)), first_expert_of(transport, config));
    auto back = object.combine_send(object.expert_output());
    object.combine_recv(std::move(back), step.weight_view(config), step.out_rows(config), true);
    step.check(config, 1000.0F);
  });
}

TEST(AllToAllTest, CopiesNothingForTokensAndResultsInPlace) {
  on_ranks(2, [](Transport& transport) {
    const AllToAllConfig config = small_config();
    AllToAll object(transport, config);
    Step step(transport.world().rank, 4, config);
    const MutableRows place = object.token_buffer();
    std::memcpy(place.data, step.tokens.data(), step.tokens.size() * sizeof(float));
    Rows tokens = place;
    tokens.rows = 4;
    auto sent = object.dispatch_send({.tokens = tokens}, step.id_view(config));
    const Received received = object.dispatch_recv(std::move(sent));
    run_experts(object, received, first_expert_of(transport, config));
    auto back = object.combine_send(object.expert_output());
    object.combine_recv(std::move(back), step.weight_view(config), step.out_rows(config));
    step.check(config);
    expect(object.byte_counters().staged_tokens == 0, "tokens in token_buffer() were copied");
    expect(object.byte_counters().staged_outputs == 0, "results in expert_output() were copied");
    expect(object.byte_counters().moved_rows == received.num_rows * kHidden * 4,
           "moved_rows is not one write per row");

    full_step(transport, object, step);  // tokens elsewhere: one counted copy
    expect(object.byte_counters().staged_tokens == 4 * kHidden * 4, "the staging copy is not counted");
  });
}

TEST(AllToAllTest, CopiesRowsOut) {
  on_ranks(2, [](Transport& transport) {
    AllToAllConfig config = small_config();
    config.alignment = 3;
    config.padding = PaddingRows::zero;
    AllToAll object(transport, config);
    Step step(transport.world().rank, 4, config);
    std::vector<float> rows(static_cast<std::size_t>(object.max_rows() * kHidden), -7.0F);
    auto sent = object.dispatch_send({.tokens = step.rows(config)}, step.id_view(config));
    const Received received = object.dispatch_recv(
        std::move(sent), MutableRows(rows.data(), object.max_rows(), kHidden, DType::f32));
    expect(received.rows.data == reinterpret_cast<const std::byte*>(rows.data()),
           "rows do not lie where they were asked for");
    run_experts(object, received, first_expert_of(transport, config));
    auto back = object.combine_send(object.expert_output());
    object.combine_recv(std::move(back), step.weight_view(config), step.out_rows(config));
    step.check(config);
    const auto width = static_cast<std::size_t>(received.starts.back() * kHidden);
    for (std::size_t i = 0; i < rows.size(); ++i)
      expect((rows[i] == -7.0F) == (i >= width), "row bytes beyond W were written, or some below were not");

    auto again = object.dispatch_send({.tokens = step.rows(config)}, step.id_view(config));
    expect_says(error_of(Errc::invalid_argument,
                         [&] {
                           (void)object.dispatch_recv(std::move(again),
                                                      MutableRows(rows.data(), 1, kHidden, DType::f32));
                         }),
                "the destination is [1, 5]");
  });
}

TEST(AllToAllTest, ViewsPointIntoTheSourcesMemory) {
  on_ranks(2, [](Transport& transport) {
    AllToAllConfig config = small_config();
    config.delivery = Delivery::view;
    AllToAll object(transport, config);
    for (std::int64_t count = 4; count >= 0; --count) {
      Step step(transport.world().rank, count, config);
      full_step(transport, object, step);
      step.check(config);
    }
    expect(object.byte_counters().moved_rows == 0, "a view moved rows");
    expect(workspace_size(config, 2).rows == 0, "a view reserves rows");
  });
}

TEST(AllToAllTest, GathersTheWaitMatrix) {
  on_ranks(3, [](Transport& transport) {
    AllToAllConfig config = small_config();
    config.record_waits = true;
    AllToAll object(transport, config);
    Step step(transport.world().rank, 4, config);
    for (int repeat = 0; repeat < 3; ++repeat) full_step(transport, object, step);
    std::vector<std::int64_t> matrix(9, -1);
    object.gather_wait_ns(Half::dispatch, {matrix.data(), 3, 3});
    for (std::int64_t peer = 0; peer < 3; ++peer)
      expect(matrix[static_cast<std::size_t>(transport.world().rank * 3 + peer)] ==
                 object.wait_ns(Half::dispatch)[static_cast<std::size_t>(peer)],
             "own row of the matrix differs from wait_ns()");
    for (const std::int64_t ns : matrix) expect(ns >= 0, "an element of the matrix was not written");
    expect(object.step_times().publish_ns > 0, "step_times() not recorded");
    expect_says(error_of(Errc::invalid_argument,
                         [&] {
                           object.gather_wait_ns(Half::combine, {matrix.data(), 2, 3});
                         }),
                "it must be [3, 3]");
  });
}

TEST(AllToAllTest, NamesPeerAndPhaseWhenARankNeverComes) {
  const auto outcomes = run_ranks({.ranks = 3}, [](Transport& transport) {
    AllToAllConfig config = small_config();
    config.deadline = std::chrono::milliseconds(1500);
    AllToAll object(transport, config);
    auto late = transport.make_collectives(8, Clock::now() + std::chrono::seconds(10));
    if (transport.world().rank != 1) {
      Step step(transport.world().rank, 2, config);
      auto sent = object.dispatch_send({.tokens = step.rows(config)}, step.id_view(config));
      const std::string text = error_of(Errc::timeout, [&] { (void)object.dispatch_recv(std::move(sent)); });
      expect_says(text, "rank 1");
      expect_says(text, "dispatch");
      expect_says(error_of(Errc::invalid_state, [&] { (void)object.combine_send(object.expert_output()); }),
                  "died");
    }
    late->barrier(std::chrono::seconds(20));  // rank 1 stays alive until the others have timed out
    return 0;
  });
  for (const auto& outcome : outcomes) EXPECT_EQ(outcome.exit_status, 0) << outcome.message;
}

TEST(WorkspaceSizeTest, IsAtMostHalfOfPplxKernelsAtR1) {
  AllToAllConfig config;
  config.max_tokens = 128;
  config.num_experts = 256;
  config.top_k = 8;
  config.hidden = 7168;
  constexpr double kPplxBytes = 2.12e9;  // per rank, E = 256, M = 128, H = 7168, whatever the number of ranks
  for (const std::int32_t ranks : {2, 4, 8, 16})
    EXPECT_LE(static_cast<double>(workspace_size(config, ranks).total()), kPplxBytes / 2);
  // The formula of docs/architecture.md by hand for 8 ranks: 8 * 128 * 8 rows of bfloat16 in and out.
  const WorkspaceSize size = workspace_size(config, 8);
  EXPECT_EQ(size.rows, 8192LL * 14336);
  EXPECT_EQ(size.outputs, 8192LL * 14336);
  EXPECT_EQ(size.tokens, 128LL * 14336);
  // 8 slots of 8200 bytes and 8 of 4104, each slot rounded to 128, each part to 4096; two parts of 8 signal words.
  EXPECT_EQ(size.messages, 69632 + 36864 + 2 * 4096);
}

TEST(WorkspaceSizeTest, NamesTheFieldOfABadConfig) {
  const auto text_of = [](auto&& change) {
    AllToAllConfig config = small_config();
    change(config);
    return error_of(Errc::invalid_argument, [&] { (void)workspace_size(config, 4); });
  };
  EXPECT_NE(text_of([](auto& c) { c.max_tokens = -1; }).find("max_tokens is -1"), std::string::npos);
  EXPECT_NE(text_of([](auto& c) { c.hidden = 0; }).find("hidden is 0"), std::string::npos);
  EXPECT_NE(text_of([](auto& c) { c.dp_size = 3; }).find("must divide the 4 ranks"), std::string::npos);
  EXPECT_NE(text_of([](auto& c) { c.payload = DType::f8e4m3; }).find("needs scales"), std::string::npos);
  EXPECT_NE(text_of([](auto& c) { c.payload = DType::f16; }).find("only quantises"), std::string::npos);
  EXPECT_NE(text_of([](auto& c) { c.scale = ScaleType::f32; }).find("scales belong to fp8"),
            std::string::npos);
  EXPECT_NE(text_of([](auto& c) { c.expert_dtype = DType::f8e5m2; }).find("expert_dtype"), std::string::npos);
  EXPECT_NE(text_of([](auto& c) { c.max_tokens = 2'000'000'000; }).find("31 bits"), std::string::npos);
  EXPECT_NE(text_of([](auto& c) {
              c.layout = RowLayout::padded;
              c.num_experts = 32768;
              c.alignment = 1 << 20;
            }).find("31 bits"),
            std::string::npos);
  EXPECT_NE(text_of([](auto& c) {
              c.max_tokens = 100'000'000;
              c.hidden = 2'000'000'000;
            }).find("more than any machine holds"),
            std::string::npos);
  EXPECT_NE(text_of([](auto& c) {
              c.max_recv_rows = 3;
              c.layout = RowLayout::padded;
            }).find("needs the packed layout"),
            std::string::npos);
}

}  // namespace
}  // namespace shunt
