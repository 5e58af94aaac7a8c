#include <shunt/cluster/measurement.h>

#include <fstream>
#include <iterator>
#include <string>

#include <gtest/gtest.h>

#include <shunt/cluster/volume.h>

#include "sha256.h"
#include "temporary_directory.h"

namespace shunt {
namespace {

const char* const kLowLatency =
    "hardware,collected_with,nodes,hidden,experts,topk,tokens_per_rank,dispatch_us,combine_us\n"
    "h100_sxm,sglang 0.5.12,2,7168,256,8,128,102.1,186.2\n";

void expect_refused(const std::string& name, const std::string& text, const std::string& message) {
  const TemporaryDirectory directory;
  const std::string path = directory.write(name, text);
  expect_error(Errc::io, path + message, [&] { static_cast<void>(read_measurements(path)); });
}

TEST(Sha256Test, GivesTheStandardsDigests) {
  // Source: FIPS 180-4, examples of one and of two blocks.
  EXPECT_EQ(detail::sha256("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(detail::sha256("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"),
            "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  EXPECT_EQ(detail::sha256(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
}

TEST(MeasurementTest, ReadsBothLatenciesOfARow) {
  const TemporaryDirectory directory;
  const MeasurementFile file = read_measurements(directory.write("a.csv", kLowLatency));
  EXPECT_EQ(file.format, "deepep_low_latency");
  ASSERT_EQ(file.cases.size(), 2U);
  EXPECT_EQ(file.cases[0].op, "dispatch");
  EXPECT_EQ(file.cases[0].ranks, 16);
  EXPECT_EQ(file.cases[0].payload, "fp8_block128");
  EXPECT_EQ(file.cases[0].measured_us, 102.1);
  EXPECT_EQ(file.cases[1].op, "combine");
  EXPECT_EQ(file.cases[1].measured_us, 186.2);
  EXPECT_EQ(file.cases[1].payload, "bfloat16");
}

TEST(MeasurementTest, KnowsTheMeasuredFiles) {
  struct Expected {
    const char* name;
    const char* format;
    std::size_t rows, columns;
  };
  for (const Expected& e :
       {Expected{"deepep_low_latency", "deepep_low_latency", 421, 2},
        Expected{"deepep_normal", "deepep_normal", 5267, 2}, Expected{"nccl_collectives", "nccl", 3744, 1},
        Expected{"trtllm_nvlink_alltoall", "trtllm", 1440, 1}}) {
    const MeasurementFile file = read_measurements(std::string("data/measured/") + e.name + ".csv");
    EXPECT_EQ(file.format, e.format);
    EXPECT_EQ(file.rows.size(), e.rows);
    EXPECT_EQ(file.cases.size(), e.rows * e.columns);
  }
  EXPECT_EQ(read_measurements("data/published/alltoall.csv").format, "published");
}

TEST(MeasurementTest, LeavesAnEmptyLatencyOpen) {
  const TemporaryDirectory directory;
  const MeasurementFile file =
      read_measurements(directory.write("a.csv", replaced(kLowLatency, ",102.1,", ",,")));
  EXPECT_EQ(file.cases[0].measured_us, 0);
}

TEST(MeasurementTest, RefusesUnknownAndMissingColumns) {
  expect_refused(
      "a.csv", replaced(kLowLatency, "hidden", "hiden"),
      ":1: unknown column \"hiden\" in a deepep_low_latency file; did you mean \"hidden\"? Allowed are "
      "hardware, collected_with, nodes, hidden, experts, topk, tokens_per_rank, dispatch_us, "
      "combine_us, imbalance");
  expect_refused("a.csv", replaced(kLowLatency, ",combine_us", ""),
                 ":1: a deepep_low_latency file needs the column \"combine_us\"");
  expect_refused("a.csv", replaced(kLowLatency, "combine_us", "dispatch_us"),
                 ":1: the column \"dispatch_us\" is there twice");
  expect_refused("a.csv", "a,b\n1,2\n",
                 ":1: this is no format that is known; expected one of the columns system, dispatch_sms, "
                 "dispatch_us, moe_dtype, message_elements, a file of shunt bench --jsonl, or output of "
                 "nccl-tests");
}

TEST(MeasurementTest, RefusesAbsurdNumbers) {
  expect_refused("a.csv", replaced(kLowLatency, "102.1", "-3"),
                 ":2: dispatch_us \"-3\": expected a number in [0.001, 100000000]");
  expect_refused("a.csv", replaced(kLowLatency, "102.1", "nan"),
                 ":2: dispatch_us \"nan\": expected a number in [0.001, 100000000]");
  expect_refused("a.csv", replaced(kLowLatency, "102.1", "1e300"),
                 ":2: dispatch_us \"1e300\": expected a number in [0.001, 100000000]");
  expect_refused("a.csv", replaced(kLowLatency, "102.1", "12us"),
                 ":2: dispatch_us \"12us\": expected a number in [0.001, 100000000]");
  expect_refused("a.csv", replaced(kLowLatency, ",256,8,", ",256,300,"),
                 ":2: topk \"300\": expected an integer in [1, 256]");
  expect_refused("a.csv", replaced(kLowLatency, ",2,7168", ",0,7168"),
                 ":2: nodes \"0\": expected an integer in [1, 65536]");
  expect_refused("a.csv", replaced(kLowLatency, ",128,102", ",128,7,102"),
                 ":2: 10 cells, but the header has 9");
  expect_refused("a.csv", replaced(kLowLatency, "h100_sxm", ""), ":2: hardware \"\": expected a name");
}

TEST(MeasurementTest, ReadsBenchRecords) {
  const TemporaryDirectory directory;
  const std::string context = "{\"record\":\"context\",\"format\":1,\"cpu_model\":\"Some CPU\"}\n";
  const std::string result =
      "{\"record\":\"result\",\"bench\":\"alltoall\",\"method\":\"shunt\",\"phase\":\"dispatch\",\"status\":"
      "\"ok\",\"transport\":\"shm\",\"ranks\":8,\"nodes\":1,\"dp_size\":1,\"experts\":256,\"topk\":8,"
      "\"hidden\":7168,\"tokens_per_rank\":128,\"in_dtype\":\"bfloat16\",\"out_dtype\":\"bfloat16\","
      "\"placement\":\"far\",\"median_us\":812.5}\n";
  const MeasurementFile file = read_measurements(
      directory.write("a.jsonl", context + result + replaced(result, "\"ok\"", "\"skipped\"")));
  ASSERT_EQ(file.cases.size(), 1U);
  EXPECT_EQ(file.cases[0].regime, "host");
  EXPECT_EQ(file.cases[0].hardware, "Some CPU");
  EXPECT_EQ(file.cases[0].variant, "shunt shm far");
  EXPECT_EQ(file.cases[0].measured_us, 812.5);
  expect_refused("b.jsonl", context + replaced(result, "812.5", "-1"),
                 ":2: median_us -1: expected more than 0 and at most 100000000");
  expect_refused("b.jsonl", context + replaced(result, "\"topk\":8,", ""), ":2: the record has no \"topk\"");
  expect_refused("b.jsonl", result, ":1: expected a context record of format 1");
}

TEST(MeasurementTest, ReadsOutputOfNcclTests) {
  const TemporaryDirectory directory;
  const std::string text =
      "# Collective test starting: alltoall_perf\n"
      "# nThread 1 nGpus 2 minBytes 8 maxBytes 1024\n"
      "#  Rank  0 Group  0 Pid 1 on host device  0 [0x00] GPU\n"
      "#  Rank  1 Group  0 Pid 1 on host device  1 [0x01] GPU\n"
      "#       size         count      type   redop    root     time   algbw   busbw #wrong\n"
      "        1024           128     float    none      -1    12.50    0.08    0.04      0    12.30    0.08 "
      "   0.04    N/A\n"
      "# Avg bus bandwidth    : 0.04\n";
  const std::string path = directory.write("a.txt", text);
  const MeasurementFile file = read_measurements(path, "dgx-h100");
  ASSERT_EQ(file.cases.size(), 1U);
  EXPECT_EQ(file.cases[0].op, "alltoall");
  EXPECT_EQ(file.cases[0].ranks, 2);
  EXPECT_EQ(file.cases[0].message_bytes, 1024);
  EXPECT_EQ(file.cases[0].measured_us, 12.5);
  expect_error(Errc::invalid_argument,
               path + ": output of nccl-tests does not name the machine; say --hardware NAME",
               [&] { static_cast<void>(read_measurements(path)); });
  const std::string wrong = directory.write("b.txt", replaced(text, "12.50", "-1.0"));
  expect_error(Errc::io, wrong + ":6: time \"-1.0\": expected more than 0 and at most 100000000",
               [&] { static_cast<void>(read_measurements(wrong, "dgx-h100")); });
  const std::string other = directory.write("c.txt", replaced(text, "alltoall_perf", "broadcast_perf"));
  expect_error(Errc::io, other + ":1: the operation \"broadcast\" has no formula",
               [&] { static_cast<void>(read_measurements(other, "dgx-h100")); });
}

}  // namespace
}  // namespace shunt
