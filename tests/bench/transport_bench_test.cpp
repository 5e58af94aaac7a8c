#include <algorithm>
#include <functional>
#include <set>
#include <sstream>
#include <string>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <shunt/bench/transport_bench.h>
#include <shunt/core/error.h>
#include <shunt/transport/collectives.h>
#include <shunt/transport/wrap.h>

#include "network_namespace.h"

namespace shunt::bench {
namespace {

TransportBenchOptions small_options() {
  TransportBenchOptions options;
  options.min_bytes = 1;
  options.max_bytes = 4096;
  options.factor = 64;
  options.transports = {"shm"};
  options.window = 5;
  options.iterations = 3;
  options.rounds = 2;
  options.max_seconds = 2;
  return options;
}

TransportBenchReport run(const TransportBenchOptions& options) {
  return run_transport_bench(options, {"test"}, {});
}

std::set<std::string> operations_of(const TransportBenchReport& report) {
  std::set<std::string> ops;
  for (const TransportRow& row : report.rows) ops.insert(row.op);
  return ops;
}

void expect_refused(const std::function<void(TransportBenchOptions&)>& change, const std::string& expected) {
  TransportBenchOptions options = small_options();
  change(options);
  try {
    static_cast<void>(run(options));
    ADD_FAILURE() << "not refused: " << expected;
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Errc::invalid_argument);
    EXPECT_NE(std::string(error.what()).find(expected), std::string::npos) << error.what();
  }
}

TEST(TransportBenchTest, ParsesSizesAsNcclTestsDoes) {
  EXPECT_EQ(parse_size("-b", "8"), 8);
  EXPECT_EQ(parse_size("-b", "3k"), 3072);
  EXPECT_EQ(parse_size("-b", "4M"), 4 << 20);
  EXPECT_EQ(parse_size("-b", "1G"), 1 << 30);
  for (const char* text :
       {"", "0", "-8", "8Q", "K", "1KB", "2G", "1025M", "8 ", "0x8", "99999999999999999999"})
    try {
      static_cast<void>(parse_size("--max-bytes", text));
      ADD_FAILURE() << "\"" << text << "\" was taken";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), Errc::invalid_argument);
      EXPECT_NE(std::string(error.what()).find("--max-bytes: \"" + std::string(text) + "\""),
                std::string::npos)
          << error.what();
    }
}

TEST(TransportBenchTest, MultipliesSizesUpToTheLargest) {
  TransportBenchOptions options;
  options.min_bytes = 3;
  options.max_bytes = 100;
  options.factor = 5;
  EXPECT_EQ(message_sizes(options), (std::vector<std::int64_t>{3, 15, 75}));
  options.max_bytes = 3;
  EXPECT_EQ(message_sizes(options), (std::vector<std::int64_t>{3}));
}

TEST(TransportBenchTest, RefusesWhatCannotBeMeasured) {
  expect_refused([](auto& o) { o.ops = {"put_latency", "reduce"}; }, "--ops: \"reduce\"");
  expect_refused([](auto& o) { o.ranks = 1, o.ops = {"signal_latency"}; },
                 "--ranks is 1, but signal_latency needs two ranks");
  expect_refused([](auto& o) { o.ranks = 4, o.nodes = 3; }, "--nodes is 3; allowed: a divisor of");
  expect_refused([](auto& o) { o.min_bytes = 8192; }, "--min-bytes is 8192; allowed: 1 to --max-bytes, 4096");
  expect_refused([](auto& o) { o.factor = 1; }, "--factor is 1; allowed: 2 to 1024");
  expect_refused([](auto& o) { o.transports = {"pigeon"}; }, "--transport: \"pigeon\"");
  expect_refused([](auto& o) { o.transports = {"shm", "shm"}; }, "named twice");
  expect_refused([](auto& o) { o.window = 0; }, "--window is 0");
}

TEST(TransportBenchTest, RefusesTwoNamesOfOneTransport) {
  expect_refused(
      [](auto& o) {
        o.ranks = 2, o.transports = {"shm", "auto"};
      },
      "\"shm\" and \"auto\" are both shm where 2 ranks are on 1 node");
}

TEST(TransportBenchTest, SaysWhereAnotherTransportWasMeasured) {
  const std::vector<TransportInfo> known = transport_registry();
  if (std::none_of(known.begin(), known.end(),
                   [](const TransportInfo& info) { return info.name == "ofi" && info.available; }))
    GTEST_SKIP() << "no libfabric here";
  TransportBenchOptions options = small_options();
  options.ranks = 2;
  options.transports = {"ofi"};
  options.ops = {"put_latency"};
  const TransportBenchReport report = run(options);
  ASSERT_EQ(report.worlds.size(), 1U);
  EXPECT_EQ(report.worlds[0].transport, "shm");
  EXPECT_TRUE(std::any_of(report.notes.begin(), report.notes.end(), [](const std::string& note) {
    return note.starts_with("ofi: all ranks are on one node");
  }));
}

TEST(TransportBenchTest, MeasuresEveryOperationOfOneToEightRanks) {
  const std::vector<std::string>& ops = transport_operations();
  for (const std::int32_t ranks : {1, 2, 3, 8}) {
    SCOPED_TRACE(ranks);
    TransportBenchOptions options = small_options();
    options.ranks = ranks;
    options.rounds = 1;
    const TransportBenchReport report = run(options);
    EXPECT_FALSE(report.failed);
    ASSERT_EQ(report.worlds.size(), 1U);
    EXPECT_EQ(report.worlds[0].ranks, ranks);
    EXPECT_EQ(report.worlds[0].clock, StampClock::common);
    const std::set<std::string> collectives{"barrier", "allgather", "alltoall", "alltoallv"};
    EXPECT_EQ(operations_of(report),
              ranks == 1 ? collectives : std::set<std::string>(ops.begin(), ops.end()));
    EXPECT_EQ(std::any_of(report.notes.begin(), report.notes.end(),
                          [](const std::string& note) { return note.starts_with("puts and signals"); }),
              ranks == 1);
    for (const TransportRow& row : report.rows) {
      SCOPED_TRACE(row.op + " " + row.method);
      EXPECT_EQ(row.wrong, 0) << row.reason;
      const bool payload = row.op != "barrier" && row.op != "signal_latency";
      // One cold iteration at least; every rank of a collective looks at a piece of each.
      EXPECT_GE(row.checked, payload ? 1 : 0);
      EXPECT_EQ(row.checked == 0, !payload);
      EXPECT_EQ(row.busbw_gb_per_s >= 0, collectives.contains(row.op));
      if (row.op == "alltoall" && row.us.median > 0) {
        EXPECT_NEAR(row.busbw_gb_per_s, row.gb_per_s * (ranks - 1) / ranks, 1e-9);
      }
      EXPECT_EQ(row.messages, row.op.ends_with("bandwidth") ? 5 : 1);
    }
  }
}

TEST(TransportBenchTest, IsRightOverATransportThatIsLateAndReorders) {
  TransportBenchOptions options = small_options();
  options.ranks = 4;
  options.ops = {"put_latency", "put_bandwidth", "put_bibandwidth", "alltoallv"};
  options.wrap = [](Transport& inner) {
    return make_delayed(inner, {.max_delay = std::chrono::microseconds(5), .probability = 0.3});
  };
  const TransportBenchReport report = run(options);
  EXPECT_FALSE(report.failed);
  EXPECT_FALSE(report.rows.empty());
  for (const TransportRow& row : report.rows) EXPECT_EQ(row.wrong, 0) << row.op << ": " << row.reason;
}

TEST(TransportBenchTest, PutsToAnotherNodeAndMeasuresASocketBesideWhereNoMemoryIsShared) {
  if (const std::string& reason = testing_support::enter_network_namespace(); !reason.empty())
    GTEST_SKIP() << reason;
  TransportBenchOptions options = small_options();
  options.ranks = 4;
  options.nodes = 2;
  options.wrap = [](Transport& inner) {
    return make_delayed(inner, {.probability = 0, .reorder = false, .hide_other_nodes = true});
  };
  const TransportBenchReport report = run(options);
  EXPECT_FALSE(report.failed);
  ASSERT_EQ(report.worlds.size(), 1U);
  EXPECT_EQ(report.worlds[0].nodes, 2);
  EXPECT_EQ(report.worlds[0].pair_peer, 2);
  EXPECT_EQ(report.worlds[0].pair_node, 1);
  std::set<std::string> by_socket;
  for (const TransportRow& row : report.rows) {
    EXPECT_EQ(row.wrong, 0) << row.op << " " << row.method << ": " << row.reason;
    EXPECT_NE(row.method, "memcpy") << "no floor where memory is not shared";
    if (row.method != "tcp_raw") continue;
    by_socket.insert(row.op);
    EXPECT_GT(row.checked, 0);
    if (row.placement != "dropped") {
      EXPECT_GT(row.us.min, 0);
    }
  }
  EXPECT_EQ(by_socket, (std::set<std::string>{"put_bandwidth", "put_latency"}))
      << testing::PrintToString(report.notes);
}

/// Damages the last byte of every put of rank 0 from 64 bytes on; signals and direct stores pass.
class Spoiler final : public Transport {
 public:
  explicit Spoiler(Transport& inner) : Transport(inner.world()), inner_(inner) {}
  [[nodiscard]] std::string_view name() const noexcept override { return inner_.name(); }
  [[nodiscard]] Capabilities capabilities() const noexcept override {
    Capabilities known = inner_.capabilities();
    known.load_store = false;  // collectives then put
    return known;
  }
  SymmetricBuffer allocate(std::int64_t bytes, const char* what, Deadline deadline) override {
    return inner_.allocate(bytes, what, deadline);
  }
  void release(SymmetricBuffer& buffer) noexcept override { inner_.release(buffer); }
  [[nodiscard]] std::byte* peer_pointer(const SymmetricBuffer& buffer,
                                        std::int32_t peer) const noexcept override {
    return inner_.peer_pointer(buffer, peer);
  }
  void put(const SymmetricBuffer& buffer, std::int32_t peer, std::int64_t offset, const void* from,
           std::int64_t bytes) override {
    const std::vector<std::byte> copy = damaged(from, bytes);
    inner_.put(buffer, peer, offset, copy.data(), bytes);
  }
  void put_signal(const SymmetricBuffer& buffer, std::int32_t peer, std::int64_t offset, const void* from,
                  std::int64_t bytes, std::int64_t signal_offset, std::uint64_t value) override {
    const std::vector<std::byte> copy = damaged(from, bytes);
    inner_.put_signal(buffer, peer, offset, copy.data(), bytes, signal_offset, value);
  }
  void signal(const SymmetricBuffer& buffer, std::int32_t peer, std::int64_t signal_offset,
              std::uint64_t value) override {
    inner_.signal(buffer, peer, signal_offset, value);
  }
  std::uint64_t wait_signal(const SymmetricBuffer& buffer, std::int64_t signal_offset, std::uint64_t value,
                            Deadline deadline, const WaitSite& site) override {
    return inner_.wait_signal(buffer, signal_offset, value, deadline, site);
  }
  std::uint64_t poll_signal(const SymmetricBuffer& buffer, std::int64_t signal_offset) override {
    return inner_.poll_signal(buffer, signal_offset);
  }
  void fence() override { inner_.fence(); }
  void quiet() override { inner_.quiet(); }

 private:
  std::vector<std::byte> damaged(const void* from, std::int64_t bytes) const {
    const auto* begin = static_cast<const std::byte*>(from);
    std::vector<std::byte> copy(begin, begin + bytes);
    if (world().rank == 0 && bytes >= 64) copy.back() ^= std::byte{0x10};
    return copy;
  }
  Transport& inner_;
};

TEST(TransportBenchTest, FindsEveryPayloadThatArrivesWrong) {
  TransportBenchOptions options = small_options();
  options.ops = {"put_latency", "put_bandwidth", "put_bibandwidth"};
  options.min_bytes = options.max_bytes = 64;
  options.wrap = [](Transport& inner) { return std::make_unique<Spoiler>(inner); };
  const TransportBenchReport report = run(options);
  EXPECT_TRUE(report.failed);
  std::set<std::string> wrong;
  for (const TransportRow& row : report.rows) {
    if (row.method == "memcpy") {
      EXPECT_EQ(row.wrong, 0);
      continue;
    }
    wrong.insert(row.op);
    // What rank 0 sends is damaged, what rank 1 sends is not.
    EXPECT_EQ(row.wrong, row.op == "put_bandwidth" ? row.checked : row.checked / 2) << row.op;
    EXPECT_NE(row.reason.find("rank 1: byte 63 of the 64 bytes of message 0 from rank 0"), std::string::npos)
        << row.reason;
  }
  EXPECT_EQ(wrong, (std::set<std::string>{"put_latency", "put_bandwidth", "put_bibandwidth"}));
  const std::string table = format_transport_table(report, options, {"test"}, false);
  EXPECT_NE(table.find("# wrong: put_latency shm, 64 bytes"), std::string::npos) << table;
}

TEST(TransportBenchTest, DoesNotLookWhereChecksAreOff) {
  TransportBenchOptions options = small_options();
  options.check = false;
  options.ops = {"put_latency", "alltoallv"};
  options.wrap = [](Transport& inner) { return std::make_unique<Spoiler>(inner); };
  const TransportBenchReport report = run(options);
  EXPECT_FALSE(report.failed);
  for (const TransportRow& row : report.rows) EXPECT_EQ(row.checked, 0);
  const std::string table = format_transport_table(report, options, {"test"}, false);
  EXPECT_NE(table.find("N/A"), std::string::npos) << table;
}

TEST(TransportBenchTest, SetsEveryLineOfTheTableInColumns) {
  TransportBenchOptions options = small_options();
  const TransportBenchReport report = run(options);
  for (const bool tsv : {false, true}) {
    std::istringstream in(format_transport_table(report, options, {"shunt", "bench", "transport"}, tsv));
    std::size_t data = 0;
    bool titled = false;
    for (std::string line; std::getline(in, line);) {
      if (line.starts_with("#")) {
        // Notes may follow the rows: what placements the blocks met is the machine's to choose.
        titled = titled || line.starts_with("# op");
        continue;
      }
      ++data;
      std::istringstream words(line);
      std::vector<std::string> cells;
      for (std::string cell; words >> cell;) cells.push_back(cell);
      EXPECT_EQ(cells.size(), 13U) << line;
      EXPECT_EQ(std::count(line.begin(), line.end(), '\t'), tsv ? 12 : 0) << line;
    }
    // One class of each line is for people.
    EXPECT_LE(data, report.rows.size());
    EXPECT_GE(data, tsv ? report.rows.size() : 5U);
    EXPECT_TRUE(titled);
  }
}

TEST(TransportBenchTest, WritesRecordsThatReadBackToTheRows) {
  TransportBenchOptions options = small_options();
  options.ranks = 3;
  const TransportBenchReport report = run(options);
  const std::vector<Record> records = transport_records(report, options);
  ASSERT_EQ(records.size(), report.rows.size());
  for (std::size_t i = 0; i < records.size(); ++i) {
    const TransportRow& row = report.rows[i];
    const nlohmann::json json = nlohmann::json::parse(records[i].to_json());
    EXPECT_EQ(json.at("record"), "result");
    EXPECT_EQ(json.at("bench"), "transport");
    EXPECT_EQ(json.at("op"), row.op);
    EXPECT_EQ(json.at("method"), row.method);
    EXPECT_EQ(json.at("transport"), "shm");
    EXPECT_EQ(json.at("ranks"), 3);
    EXPECT_EQ(json.at("bytes"), row.bytes);
    EXPECT_EQ(json.at("messages"), row.messages);
    EXPECT_EQ(json.at("placement"), row.placement);
    EXPECT_EQ(json.at("rounds"), row.rounds);
    EXPECT_EQ(json.at("median_us").get<double>(), row.us.median);
    EXPECT_EQ(json.at("p99_us").get<double>(), row.us.p99);
    EXPECT_EQ(json.at("samples"), row.us.count);
    EXPECT_EQ(json.at("gb_per_s").get<double>(), row.gb_per_s);
    EXPECT_EQ(json.at("busbw_gb_per_s").is_null(), row.busbw_gb_per_s < 0);
    EXPECT_EQ(json.at("wrong"), row.wrong);
    EXPECT_EQ(json.at("status"), "ok");
  }
}

TEST(TransportBenchTest, GivesTheSameLinesByThreads) {
  TransportBenchOptions options = small_options();
  options.mode = RankMode::threads;
  const TransportBenchReport report = run(options);
  EXPECT_FALSE(report.failed);
  EXPECT_EQ(operations_of(report).size(), transport_operations().size());
}

}  // namespace
}  // namespace shunt::bench
