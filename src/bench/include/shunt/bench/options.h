#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include <shunt/bench/method.h>
#include <shunt/bench/results.h>
#include <shunt/core/parse.h>
#include <shunt/transport/launch.h>

namespace shunt::bench {

/// What `shunt bench alltoall` was asked to do. Values here are checked by run_alltoall_bench.
struct AllToAllBenchOptions {
  std::int32_t ranks = 0;            ///< Of this machine, whatever a launcher says; 0: the job's, else 2
  std::int32_t nodes = 1;            ///< That the ranks of this machine pretend to be on; divides ranks
  std::vector<std::string> presets;  ///< Empty: v2-lite and r1, unless a size below is given
  std::int32_t num_experts = 0;      ///< 0: from the preset
  std::int32_t top_k = 0;
  std::int64_t hidden = 0;
  std::vector<std::int64_t> tokens{1, 4, 8, 16, 32, 64, 128};
  std::int32_t dp_size = 1;
  DType in_dtype = DType::bf16;
  DType out_dtype = DType::bf16;
  std::string transport = "auto";
  std::string provider;  ///< See LaunchOptions
  RankMode mode = RankMode::processes;
  RowLayout layout = RowLayout::packed;
  std::int64_t alignment = 1;
  std::int64_t max_recv_rows = -1;
  std::vector<std::string> routings{"uniform"};
  std::string input;                 ///< Directory of a model dump; empty: tokens from the seed
  std::vector<std::string> methods;  ///< Empty: all that open no sockets
  bool peers = false;                ///< Also those that do
  std::int64_t warmup = 2;           ///< Untimed iterations at the start of each block
  std::int64_t iterations = 0;       ///< Timed ones per block; 0: as many as fit block_ms
  double block_ms = 4;
  std::int64_t rounds = 10;  ///< Kept rounds a comparison needs
  double max_seconds = 150;  ///< For all points together
  std::uint64_t seed = 1;
  std::int64_t deadline_ms = 30'000;
  bool inner_phases = true;
  std::string tsv;    ///< Empty: data/<time>_unified_moe_separated.tsv
  std::string jsonl;  ///< Empty: the TSV's name with .jsonl
  bool write_files = true;
  std::vector<MethodSpec> registry = alltoall_methods();
  std::string device = "cpu";  ///< Where tokens lie: cpu, cuda, or auto: cuda where it can run
  bool cold = false;           ///< cuda: the L2 cache holds other data at the begin of each phase
  bool graph = false;          ///< cuda: phases without the host in them are replayed from a CUDA graph
  bool gate =
      true;  ///< cuda: such phases are queued behind a gate that opens when all ranks have queued theirs
  std::int32_t max_blocks = 0;  ///< cuda: blocks of a launch; 0: as many as fill the device
  std::string pplx_tsv;         ///< Empty: not written
  bool own_clocks = false;      ///< The registry's methods bring times of devices; set for cuda
  /// Told of every point as soon as it is measured, in the process that leads.
  std::function<void(const PointResult&)> on_point{};
  /// For tests: each rank measures over what this makes of its transport.
  std::function<std::unique_ptr<Transport>(Transport&)> wrap{};
};

/// Parses "1,4,8": whole numbers from 1 to 8192.
/// Errors: Errc::invalid_argument with the text, the part that is wrong and what is allowed.
[[nodiscard]] std::vector<std::int64_t> parse_token_counts(std::string_view text);

using shunt::parse_number;
using shunt::parse_whole;
using shunt::split_list;
[[nodiscard]] RowLayout parse_layout(std::string_view text);

/// Checks the options against each other and lists the points: presets, then routings, then token counts.
/// Without --ranks there are `job_ranks`, or 2 where that is 0.
/// Errors: Errc::invalid_argument with option, value and range; Errc::unavailable for a transport that this machine
///         or build lacks.
[[nodiscard]] std::vector<Point> expand_points(AllToAllBenchOptions& options, const ModelDump* dump,
                                               std::int32_t job_ranks);

/// Every method of a device, with the reasons where it cannot run; "auto": of the one that would be taken.
/// Errors: Errc::invalid_argument for a name that is none.
[[nodiscard]] std::vector<MethodSpec> device_methods(const std::string& device);

/// The methods asked for, floors included; those that this machine cannot run, or that open sockets and were not
/// asked for, with the reason.
/// Errors: Errc::invalid_argument lists the names there are.
[[nodiscard]] std::vector<MethodSpec> select_methods(const AllToAllBenchOptions& options);

}  // namespace shunt::bench
