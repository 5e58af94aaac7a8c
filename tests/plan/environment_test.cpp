#include <shunt/plan/environment.h>

#include <algorithm>

#include <shunt/plan/lab.h>

#include "models.h"

namespace shunt::plan {
namespace {

std::vector<std::string> judge(const std::string& text, const std::string& fabric = "",
                               const Versions& versions = {}) {
  std::vector<std::string> lines;
  constexpr const char* kNames[] = {"note", "warning", "error"};
  for (const Finding& f : lint(parse_environment(text, "file"), versions, fabric))
    lines.push_back(std::string(kNames[static_cast<int>(f.severity)]) + " " + std::to_string(f.line) + " " +
                    f.variable + " " + f.message);
  return lines;
}

using Lines = std::vector<std::string>;

TEST(EnvironmentTest, OwnSettingsPassTheLinter) {
  for (const std::string& fabric : environment_fabrics()) {
    EnvironmentOptions options;
    options.fabric = fabric;
    const Report report = report_environment(options);
    std::string text;
    for (const auto& row : report.tables[0].rows) text += std::get<std::string>(row[3]) + "\n";
    EXPECT_GT(report.tables[0].rows.size(), 2U);
    EXPECT_EQ(judge(text, fabric), Lines{}) << text;
  }
}

TEST(EnvironmentTest, RefusesUnknownNames) {
  EnvironmentOptions options;
  options.fabric = "nvl";
  expect_refused("--fabric \"nvl\": did you mean \"nvl72\"? Allowed are nvlink, nvl72, ib, ethernet, efa",
                 [&] { (void)report_environment(options); });
  options.fabric = "nvl72";
  options.tp = 5;
  expect_refused("tp 5 * pp 1 does not divide the 72 GPUs", [&] { (void)report_environment(options); });
}

TEST(LintTest, ReadsTheWaysPeopleWriteVariables) {
  const auto variables = parse_environment(
      "# comment\nexport A=1\nB=\"two words\" # end\n-x C=3 -x D=4\n\n  --env E=x=y\r\nF=\n", "file");
  std::string all;
  for (const Variable& v : variables) all += v.name + "=" + v.value + "@" + std::to_string(v.line) + " ";
  EXPECT_EQ(all, "A=1@2 B=two words@3 C=3@4 D=4@4 E=x=y@6 F=@7 ");
  try {
    (void)parse_environment("A=1\nnonsense\n", "file");
    FAIL() << "accepted";
  } catch (const Error& error) {
    EXPECT_EQ(std::string(error.what()), "file:2: \"nonsense\" is not NAME=value");
  }
}

TEST(LintTest, FindsNamesThatDoNotExist) {
  EXPECT_EQ(judge("NCCL_PROTOS=Simple"), Lines{"error 1 NCCL_PROTOS is not known; did you mean NCCL_PROTO?"});
  EXPECT_EQ(judge("FI_EFA_TX_SIZE=1"),
            Lines{"note 1 FI_EFA_TX_SIZE is not among the variables that are known here"});
  EXPECT_EQ(judge("PATH=/bin\nHOME=/root\nCUDA_HOME=/usr"), Lines{});
  EXPECT_EQ(
      judge("NCCL_LL_THRESHOLD=0"),
      Lines{
          "error 1 NCCL_LL_THRESHOLD has had no effect since 2.5: the tuner chooses the protocol; NCCL_PROTO "
          "restricts it"});
  EXPECT_EQ(judge("NCCL_WIN_ENABLE=1", "", {{2, 26}}),
            Lines{"error 1 NCCL_WIN_ENABLE exists since 2.27, not in 2.26"});
  EXPECT_EQ(judge("NCCL_MAX_NCHANNELS=4"),
            Lines{"warning 1 NCCL_MAX_NCHANNELS is deprecated since 2.17; use NCCL_MAX_CTAS"});
  EXPECT_EQ(judge("NCCL_MAX_NCHANNELS=4", "", {{2, 16}}), Lines{});
}

TEST(LintTest, FindsValuesThatAreNotAllowed) {
  EXPECT_EQ(judge("NCCL_CROSS_NIC=3"), Lines{"error 1 NCCL_CROSS_NIC \"3\" is not an integer in [0, 2]"});
  EXPECT_EQ(judge("NCCL_P2P_LEVEL=NVLINK"),
            Lines{"error 1 NCCL_P2P_LEVEL \"NVLINK\" is none of LOC, NVL, PIX, PXB, PHB, SYS"});
  EXPECT_EQ(
      judge("NCCL_NET_GDR_LEVEL=0"),
      Lines{
          "warning 1 NCCL_NET_GDR_LEVEL 0 is an old number for LOC: GPUDirect RDMA is off; write the name"});
  EXPECT_EQ(judge("NCCL_PROTO=^LL128"), Lines{});
  EXPECT_EQ(judge("NCCL_PROTO=LL,Fast"), Lines{"error 1 NCCL_PROTO \"Fast\" is none of LL, LL128, Simple"});
  EXPECT_EQ(judge("NCCL_ALGO='allreduce:Ring;alltoall:Ring'", "", {{2, 23}}),
            Lines{"error 1 NCCL_ALGO values for single functions exist since 2.24"});
  EXPECT_EQ(judge("UCX_TLS=rc,sm"),
            Lines{"error 1 UCX_TLS \"rc,sm\" has no cuda: GPU memory cannot be sent"});
}

TEST(LintTest, FindsWhatContradicts) {
  EXPECT_EQ(judge("NCCL_MNNVL_ENABLE=2\nNCCL_CUMEM_ENABLE=0"),
            Lines{"error 2 NCCL_CUMEM_ENABLE 0 takes away what NCCL_MNNVL_ENABLE needs"});
  EXPECT_EQ(judge("NCCL_MIN_CTAS=8\nNCCL_MAX_CTAS=4"),
            Lines{"error 1 NCCL_MIN_CTAS 8 is above NCCL_MAX_CTAS 4"});
  EXPECT_EQ(judge("NCCL_IB_DISABLE=1\nNCCL_IB_TC=106", "ib"),
            (Lines{"error 1 NCCL_IB_DISABLE 1 on ib: NCCL falls back to TCP",
                   "warning 2 NCCL_IB_TC has no effect beside NCCL_IB_DISABLE=1"}));
  EXPECT_EQ(judge("NVSHMEM_IBGDA_NUM_DCI=4"),
            Lines{"warning 1 NVSHMEM_IBGDA_NUM_DCI has no effect without NVSHMEM_IB_ENABLE_IBGDA=1"});
  EXPECT_EQ(
      judge("NVSHMEM_IB_ENABLE_IBGDA=1", "efa"),
      Lines{
          "error 1 NVSHMEM_IB_ENABLE_IBGDA EFA has no IBGDA; NVSHMEM_REMOTE_TRANSPORT=libfabric reaches it"});
  EXPECT_EQ(judge("NCCL_SOCKET_NTHREADS=16\nNCCL_NSOCKS_PERTHREAD=8"),
            Lines{"error 2 NCCL_NSOCKS_PERTHREAD 8 times NCCL_SOCKET_NTHREADS 16 is above 64"});
  EXPECT_EQ(judge("NCCL_DEBUG=INFO\nNCCL_DEBUG=WARN"),
            Lines{"warning 2 NCCL_DEBUG is set again, to \"WARN\"; the last value counts"});
}

TEST(LintTest, FindsWhatIsWrongInTheLabsPresets) {
  std::string text;
  for (const auto& [name, value] : lab::vllm_profile(lab::Role::optimized, "nvl72").env)
    text += name + "=" + value + "\n";
  const auto findings = judge(text, "nvl72");
  for (const char* name :
       {"NCCL_LL_THRESHOLD", "NCCL_LL128_THRESHOLD", "NCCL_NET_PROTOCOL", "NCCL_ASYNC_ERROR_HANDLING",
        "NCCL_LAUNCH_MODE", "VLLM_USE_CUDA_GRAPH", "CUDA_GRAPH_CACHE_SIZE", "NCCL_PROTO",
        "NCCL_MIN_NCHANNELS", "NCCL_SOCKET_NTHREADS"}) {
    EXPECT_TRUE(std::any_of(findings.begin(), findings.end(), [name](const std::string& f) {
      return f.find(std::string(" ") + name + " ") != std::string::npos;
    })) << name;
  }
}

TEST(LintTest, ReadsVersions) {
  EXPECT_EQ(parse_version("--nccl", "2.27.3"), (Version{2, 27}));
  expect_refused("--nccl \"2\": expected a version like 2.27 or 2.27.3",
                 [] { (void)parse_version("--nccl", "2"); });
  expect_refused("--nccl \"2.x\": expected a version like 2.27 or 2.27.3",
                 [] { (void)parse_version("--nccl", "2.x"); });
}

}  // namespace
}  // namespace shunt::plan
