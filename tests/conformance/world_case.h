#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <functional>
#include <iosfwd>
#include <memory>
#include <string>
#include <vector>

#include <shunt/core/error.h>
#include <shunt/transport/collectives.h>
#include <shunt/transport/launch.h>
#include <shunt/transport/wrap.h>

namespace shunt::conformance {

enum class Gpus : std::uint8_t { none, fake, two_fake, real, of_transport };

/// One row of the suite: a transport, a way to run its ranks and a wrapper. A new transport adds rows here.
struct Backend {
  std::string name;
  std::string transport;
  RankMode mode = RankMode::processes;
  bool delayed = false;
  bool hide_load_store = false;
  std::int32_t nodes = 1;             ///< Virtual nodes; kEachItsOwn: as many as ranks
  std::string provider{};             ///< Of ofi
  std::vector<std::int32_t> ranks{};  ///< Numbers of ranks that it runs with; empty: all
  std::string delivery{};             ///< Of ofi, for SHUNT_OFI_DELIVERY
  Gpus gpus = Gpus::none;  ///< Whose memory is laid over `transport`; of_transport: it lies on GPUs itself
};
inline constexpr std::int32_t kEachItsOwn = 0;
[[nodiscard]] const std::vector<Backend>& backends();
[[nodiscard]] const std::vector<std::int32_t>& rank_counts();

/// The job that this process is part of, or null: then every test starts ranks of its own. The environment decides:
///   SHUNT_CONFORMANCE_TRANSPORT  join the job that the environment describes (MASTER_ADDR …, RANK, mpirun, srun) on
///                                this transport; its number of ranks is then the only one
///   SHUNT_CONFORMANCE_FOLDER     an empty folder that all processes of the job see in the same kernel, for
///                                SharedCounter (tests/network/conformance makes one)
[[nodiscard]] LaunchSession* job();
void PrintTo(const Backend& backend, std::ostream* out);

/// Body of a rank; throws where something is wrong, since assertions of a forked rank would not reach the
/// test.
using Body = std::function<void(Transport&)>;

class TransportConformance : public testing::TestWithParam<std::tuple<Backend, std::int32_t>> {
 protected:
  /// Skips what cannot run here, with the reason. What opens sockets does so in a network namespace of its own.
  void SetUp() override;
  void TearDown() override;
  [[nodiscard]] static std::int32_t ranks() { return std::get<1>(GetParam()); }
  [[nodiscard]] static std::vector<RankOutcome> run(const Body& body);
  /// Ranks of which run() returns outcomes.
  [[nodiscard]] static std::int32_t outcomes_here();
  /// Expects every rank of this process to have returned.
  static void expect_well(const std::vector<RankOutcome>& outcomes);
  /// Runs `body` and expects every rank to return.
  static void run_well(const Body& body) { expect_well(run(body)); }
};

[[nodiscard]] std::string case_name(const testing::TestParamInfo<TransportConformance::ParamType>& info);

#define SHUNT_CONFORMANCE(suite)                                                                   \
  INSTANTIATE_TEST_SUITE_P(AllTransports, suite,                                                   \
                           testing::Combine(testing::ValuesIn(shunt::conformance::backends()),     \
                                            testing::ValuesIn(shunt::conformance::rank_counts())), \
                           shunt::conformance::case_name)

/// Throws Errc::check_failed with `what` unless `good`.
void require(bool good, const std::string& what);
/// The message of the Error with `code` that `call` throws; throws check_failed where it does not.
[[nodiscard]] std::string message_of(Errc code, const std::function<void()>& call);
void require_contains(const std::string& text, const std::string& part);

/// Far enough for a slow machine; a test that needs it has failed.
[[nodiscard]] inline Deadline patience() {
  return Clock::now() + std::chrono::seconds(60);
}
inline constexpr std::chrono::seconds kPatience{60};

/// Byte `at` of what rank `from` sends to rank `to` in step `step`.
[[nodiscard]] std::byte pattern(std::int32_t from, std::int32_t to, std::int64_t step, std::int64_t at);
/// `data` may be memory of the transport under test, wherever that lies; so may `at` of the two below. The CPU itself
/// cannot load and store device memory: tests go through these.
void fill(std::byte* data, std::int64_t bytes, std::int32_t from, std::int32_t to, std::int64_t step);
void require_filled(const std::byte* data, std::int64_t bytes, std::int32_t from, std::int32_t to,
                    std::int64_t step, const std::string& what);

[[nodiscard]] std::vector<std::byte> bytes_at(const std::byte* at, std::int64_t bytes);
void set_bytes(std::byte* at, std::int64_t bytes, std::byte value);

/// A counter that ranks share without the transport under test, for ends that the transport does not survive. In a job
/// it is a file: all processes make the same counters in the same order.
class SharedCounter {
 public:
  SharedCounter();
  ~SharedCounter();
  SharedCounter(const SharedCounter&) = delete;
  SharedCounter& operator=(const SharedCounter&) = delete;
  void add() const;
  [[nodiscard]] std::int32_t count() const;
  /// Waits with the patience of a test.
  void wait_for(std::int32_t count) const;

 private:
  std::int32_t* count_;
};

}  // namespace shunt::conformance
