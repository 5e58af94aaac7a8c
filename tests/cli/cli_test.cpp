#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "network_namespace.h"
#include "process.h"

namespace shunt::cli {
namespace {

using Words = std::vector<std::string>;

/// A folder that goes away with the test.
class Folder {
 public:
  Folder() {
    std::string pattern = (std::filesystem::temp_directory_path() / "shunt-cli-XXXXXX").string();
    path_ = mkdtemp(pattern.data());
  }
  ~Folder() { std::filesystem::remove_all(path_); }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  [[nodiscard]] std::string file(const std::string& name) const { return path_ + "/" + name; }
  [[nodiscard]] const std::string& path() const { return path_; }

 private:
  std::string path_;
};

std::vector<std::string> lines_of(const std::string& path) {
  std::ifstream in(path);
  std::vector<std::string> lines;
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  return lines;
}

Words tiny(const Words& more) {
  Words words{"bench",    "alltoall", "--ranks",  "2",   "--experts", "8", "--topk",        "2",
              "--hidden", "64",       "--tokens", "1,4", "--rounds",  "2", "--max-seconds", "5"};
  words.insert(words.end(), more.begin(), more.end());
  return words;
}

TEST(CliTest, RefusesBadInputWithStatusTwoAndWhatIsAllowed) {
  const std::vector<std::pair<Words, const char*>> cases{
      {{"bench", "alltoall", "--tokens", "0x"}, "a whole number from 1 to 8192"},
      {{"bench", "alltoall", "--in-dtype", "int8"}, "bfloat16"},
      {{"bench", "alltoall", "--out-dtype", "float8_e5m2"}, "float32"},
      {{"bench", "alltoall", "--experts", "4", "--topk", "5", "--hidden", "8"},
       "1 to the number of experts, 4"},
      {{"bench", "alltoall", "--ranks", "two"}, "a whole number from 1 to 1024"},
      {{"bench", "alltoall", "--preset", "r2"}, "r1"},
      {{"bench", "alltoall", "--methods", "shunt,nosuch"}, "shunt/view"},
      {{"bench", "alltoall", "--routing", "sideways"}, "uniform"},
      {{"bench", "alltoall", "--layout", "loose"}, "packed, padded"},
      {{"bench", "alltoall", "--transport", "pigeon"}, "allowed: auto, shm"},
      {{"bench", "alltoall", "--max-seconds", "soon"}, "a number from"},
      {{"bench", "alltoall", "--input", "/nonexistent", "--experts", "8"}, "/nonexistent"},
      {{"bench", "alltoall", "--input", "/nonexistent"}, "--experts"},
      {{"bench", "alltoall", "--methods", "cpu/nccl,cuda/nccl"}, "cpu/nccl: this build has no"},
      {{"bench", "alltoall", "--tsv", "/proc/nosuch.tsv"}, "/proc/nosuch.tsv"},
      {{"bench", "alltoall", "--nosuch"}, "--nosuch"},
      {{"bench", "transport", "-b", "8Q"},
       "--min-bytes: \"8Q\" is not allowed; allowed: a whole number of bytes"},
      {{"bench", "transport", "-b", "8K", "-e", "4K"},
       "--min-bytes is 8192; allowed: 1 to --max-bytes, 4096"},
      {{"bench", "transport", "-f", "1"}, "a whole number from 2 to 1024"},
      {{"bench", "transport", "--ops", "put"}, "put_latency, put_bandwidth"},
      {{"bench", "transport", "--ranks", "1", "--ops", "put_latency"}, "needs two ranks"},
      {{"bench", "transport", "--transport", "pigeon"}, "shm"},
      {{"bench", "transport", "--jsonl", "/proc/nosuch.jsonl"}, "/proc/nosuch.jsonl"},
      {{"bench"}, "subcommand"},
      {{}, "subcommand"},
  };
  for (const auto& [words, expected] : cases) {
    const Ended ended = run_shunt(words);
    EXPECT_EQ(ended.status, 2) << expected << ": " << ended.err;
    EXPECT_NE(ended.err.find(expected), std::string::npos) << ended.err;
  }
}

TEST(CliTest, SuggestsTheNearestOptionOrCommand) {
  for (const auto& [words, message] : std::vector<std::pair<Words, std::string>>{
           {{"plna"}, "plna is not a command of shunt; did you mean plan?"},
           {{"plan", "memry"}, "memry is not a command of shunt plan; did you mean memory?"},
           {{"bench", "alltoall", "--ranks", "2", "--tokns", "4"},
            "--tokns is not an option of shunt bench alltoall; did you mean --tokens?"},
           {{"plan", "memory", "--modle=r1"},
            "--modle is not an option of shunt plan memory; did you mean --model?"},
           {{"doctor", "--xyzzy-of-nothing"},
            "--xyzzy-of-nothing is not an option of shunt doctor (shunt doctor --help lists them)"},
           {{"--versio"}, "--versio is not an option of shunt; did you mean --version?"},
           {{"doctor", "now"}, "now is too much: shunt doctor takes options only"}}) {
    const Ended ended = run_shunt(words);
    EXPECT_EQ(ended.status, 2);
    EXPECT_EQ(ended.out, "");
    EXPECT_EQ(ended.err, "shunt: " + message + "\n");
  }
  const Ended far = run_shunt({"bench", "everything"});
  EXPECT_EQ(far.status, 2);
  EXPECT_NE(far.err.find("everything is not a command of shunt bench; there are alltoall, "),
            std::string::npos)
      << far.err;
  // A value that looks like an option is a value.
  const Ended value = run_shunt({"plan", "schedule", "--forward", "-1"});
  EXPECT_EQ(value.err.find("not an option"), std::string::npos) << value.err;
}

TEST(CliTest, SaysWhatAPointOfTooMuchMemoryNeeds) {
  const Ended ended = run_shunt({"bench", "alltoall", "--experts", "64", "--topk", "32", "--hidden",
                                 "1048576", "--tokens", "8192", "--ranks", "8"});
  EXPECT_EQ(ended.status, 2);
  EXPECT_NE(ended.err.find("iB"), std::string::npos) << ended.err;
  EXPECT_NE(ended.err.find("--tokens"), std::string::npos) << ended.err;
}

TEST(CliTest, HelpsAndListsWithStatusZero) {
  EXPECT_EQ(run_shunt({"--help"}).status, 0);
  EXPECT_EQ(run_shunt({"--version"}).status, 0);
  const Ended list = run_shunt({"bench", "alltoall", "--list"});
  EXPECT_EQ(list.status, 0);
  for (const char* name :
       {"shunt/view", "scalar/alltoallv", "xcopy", "torch", "cuda/nccl", "simd/mpi", "this build has no"})
    EXPECT_NE(list.out.find(name), std::string::npos) << name;
}

TEST(CliTest, WritesATableAndRecordsOfCheckedRuns) {
  const Folder folder;
  std::set<std::string> hashes;
  for (const char* mode : {"processes", "threads"}) {
    const std::string tsv = folder.file(std::string(mode) + ".tsv");
    const Ended ended = run_shunt(tiny({"--tsv", tsv, "--rank-mode", mode}));
    ASSERT_EQ(ended.status, 0) << ended.err;
    EXPECT_EQ(ended.err, "") << "no progress bar in a pipe";
    EXPECT_NE(ended.out.find("the fastest method that delivers rows is"), std::string::npos) << ended.out;

    const std::vector<std::string> table = lines_of(tsv);
    ASSERT_GE(table.size(), 4U);  // units, names, two token counts
    EXPECT_EQ(table[0][0], '#');
    std::istringstream names(table[1]);
    Words columns;
    for (std::string name; std::getline(names, name, '\t');) columns.push_back(name);
    ASSERT_GT(columns.size(), 28U);
    EXPECT_EQ(columns[0], "E");
    EXPECT_EQ(columns[16], "Dense_bytes");
    EXPECT_EQ(columns[27], "Speedup_NVSHMEM");

    const std::vector<std::string> records = lines_of(folder.file(std::string(mode) + ".jsonl"));
    ASSERT_GT(records.size(), 10U);
    const auto context = nlohmann::json::parse(records[0]);
    EXPECT_EQ(context.at("record"), "context");
    EXPECT_EQ(context.at("format"), 1);
    EXPECT_TRUE(context.contains("placement_same_l3_below_ns"));
    bool shunt_seen = false;
    for (std::size_t i = 1; i < records.size(); ++i) {
      const auto record = nlohmann::json::parse(records[i]);
      EXPECT_EQ(record.at("record"), "result");
      EXPECT_NE(record.at("status"), "failed") << records[i];
      if (record.at("status") != "ok") continue;
      EXPECT_EQ(record.at("correct"), true) << records[i];
      EXPECT_GE(record.at("median_us").get<double>(), 0) << records[i];
      shunt_seen = shunt_seen || (record.at("method") == "shunt" && record.at("phase") == "total");
      if (record.at("tokens_per_rank") == 4 && !record.at("result_hash").get<std::string>().empty())
        hashes.insert(record.at("result_hash").get<std::string>());
    }
    EXPECT_TRUE(shunt_seen);
  }
  EXPECT_EQ(hashes.size(), 1U) << "every method and rank mode gives the same bits";
}

TEST(CliTest, NeverOverwritesResults) {
  const Folder folder;
  std::ofstream(folder.file("kept.tsv")) << "mine\n";
  const Ended ended = run_shunt(tiny({"--tsv", folder.file("kept.tsv")}));
  EXPECT_EQ(ended.status, 2);
  EXPECT_NE(ended.err.find("kept.tsv"), std::string::npos) << ended.err;
  EXPECT_EQ(lines_of(folder.file("kept.tsv")), (std::vector<std::string>{"mine"}));
}

TEST(CliTest, KeepsThePointsBeforeAnError) {
  const Folder folder;
  // One token per rank sends few rows; 64 send more than may arrive.
  const Ended ended = run_shunt({"bench",         "alltoall", "--experts",       "8",
                                 "--topk",        "2",        "--hidden",        "64",
                                 "--tokens",      "1,64",     "--rounds",        "1",
                                 "--max-seconds", "5",        "--max-recv-rows", "4",
                                 "--methods",     "shunt",    "--tsv",           folder.file("kept.tsv")});
  EXPECT_EQ(ended.status, 2);
  EXPECT_NE(ended.err.find("64 tokens"), std::string::npos) << ended.err;
  EXPECT_NE(ended.out.find("1 of 2 points"), std::string::npos) << ended.out;
  EXPECT_GE(lines_of(folder.file("kept.tsv")).size(), 2U);
  const std::vector<std::string> records = lines_of(folder.file("kept.jsonl"));
  ASSERT_GE(records.size(), 2U);
  for (const std::string& record : records) EXPECT_TRUE(nlohmann::json::accept(record)) << record;
  EXPECT_NE(records.back().find("\"tokens_per_rank\":1,"), std::string::npos) << records.back();
}

TEST(CliTest, LeavesNoFileWhereNothingWasMeasured) {
  const Folder folder;
  const Ended ended =
      run_shunt(tiny({"--max-recv-rows", "0", "--methods", "shunt", "--tsv", folder.file("nothing.tsv")}));
  EXPECT_EQ(ended.status, 2) << ended.err;
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
}

TEST(CliTest, NamesFilesByTimeInData) {
  const Folder folder;
  const Ended ended = run_shunt(tiny({"--methods", "shunt"}), folder.path());
  ASSERT_EQ(ended.status, 0) << ended.err;
  std::set<std::string> suffixes;
  for (const auto& entry : std::filesystem::directory_iterator(folder.file("data")))
    suffixes.insert(entry.path().filename().string().substr(15));
  EXPECT_EQ(suffixes, (std::set<std::string>{"_unified_moe_separated.jsonl", "_unified_moe_separated.tsv"}));
}

TEST(CliTest, MeasuresATransportAndWritesItsRecords) {
  const Folder folder;
  const std::string jsonl = folder.file("transport.jsonl");
  const std::string tsv = folder.file("transport.tsv");
  const Words words{"bench", "transport",     "-b", "8",       "-e",  "8K",    "-f", "32", "--rounds",
                    "1",     "--max-seconds", "5",  "--jsonl", jsonl, "--tsv", tsv};
  const Ended ended = run_shunt(words);
  ASSERT_EQ(ended.status, 0) << ended.err;
  EXPECT_EQ(ended.out.substr(0, 8), "# shunt ");
  for (const char* expected : {"put_latency", "memcpy", "alltoallv", "busbw_gb_per_s", "#wrong"})
    EXPECT_NE(ended.out.find(expected), std::string::npos) << expected << " in " << ended.out;
  const std::vector<std::string> lines = lines_of(jsonl);
  ASSERT_GE(lines.size(), 9U);
  const nlohmann::json context = nlohmann::json::parse(lines[0]);
  EXPECT_EQ(context.at("record"), "context");
  EXPECT_EQ(context.at("window"), 64);
  for (std::size_t i = 1; i < lines.size(); ++i) {
    const nlohmann::json line = nlohmann::json::parse(lines[i]);
    EXPECT_EQ(line.at("bench"), "transport");
    EXPECT_EQ(line.at("wrong"), 0);
  }
  const Ended again = run_shunt(words);
  EXPECT_EQ(again.status, 2) << "a file must not be overwritten";
  EXPECT_NE(again.err.find(tsv), std::string::npos) << again.err;
}

/// The doctor asks libfabric, which opens sockets. Where there can be no namespace it tells what it tells.
void enter_namespace_where_possible() {
  static_cast<void>(testing_support::enter_network_namespace());
}

TEST(CliTest, DoctorSaysWhatIsThereAndWhatIsMissing) {
  enter_namespace_where_possible();
  const Ended text = run_shunt({"doctor"}, "", {"SHUNT_FORCE_ISA=scalar", "FI_PROVIDER=tcp"});
  ASSERT_EQ(text.status, 0) << text.err;
  for (const char* expected :
       {"cores", "kernel tables", "GPU kernels", "shm", "NCCL", "not built in", "launching", "by itself",
        "Slurm", "namespaces", "cuda/nccl", "SHUNT_FORCE_ISA=scalar", "FI_PROVIDER=tcp"})
    EXPECT_NE(text.out.find(expected), std::string::npos) << expected << " in " << text.out;
  const Ended json = run_shunt({"doctor", "--json"});
  ASSERT_EQ(json.status, 0) << json.err;
  std::istringstream in(json.out);
  std::set<std::string> kinds;
  for (std::string line; std::getline(in, line);)
    kinds.insert(nlohmann::json::parse(line).at("record").get<std::string>());
  for (const char* kind : {"host", "kernels", "gpu_kernels", "placement", "transport", "launch", "slurm",
                           "namespaces", "library", "method"})
    EXPECT_TRUE(kinds.contains(kind)) << kind;
  EXPECT_NE(json.out.find("\"cpu_model\""), std::string::npos) << "facts have one name everywhere";
}

TEST(CliTest, DoctorSaysHowACommandWouldStart) {
  enter_namespace_where_possible();
  const Ended node = run_shunt(
      {"doctor"}, "",
      {"MASTER_ADDR=node7", "MASTER_PORT=29500", "WORLD_SIZE=4", "WORLD_LOCAL_SIZE=2", "NODE_RANK=1"});
  EXPECT_EQ(node.status, 0) << node.err;
  EXPECT_NE(node.out.find("as node 1: a command starts 2 of 4 ranks, which meet at node7:29500"),
            std::string::npos)
      << node.out;
  const Ended wrong = run_shunt({"doctor"}, "", {"MASTER_ADDR=node7", "MASTER_PORT=none"});
  EXPECT_EQ(wrong.status, 0) << wrong.err;
  EXPECT_NE(wrong.out.find("MASTER_PORT='none'"), std::string::npos) << wrong.out;
}

}  // namespace
}  // namespace shunt::cli
