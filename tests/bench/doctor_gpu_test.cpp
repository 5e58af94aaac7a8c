#include "doctor_gpu.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

namespace shunt::bench {
namespace {

namespace fs = std::filesystem;

/// A file system of its own, as the kernel would show it.
class FakeRoot {
 public:
  FakeRoot() {
    char name[] = "/tmp/shunt_doctor_XXXXXX";
    root_ = mkdtemp(name);
  }
  ~FakeRoot() { fs::remove_all(root_); }
  FakeRoot(const FakeRoot&) = delete;
  FakeRoot& operator=(const FakeRoot&) = delete;

  void file(const std::string& path, const std::string& text = {}) const {
    fs::create_directories(fs::path(root_ + path).parent_path());
    std::ofstream(root_ + path) << text;
  }
  void card(const std::string& name, const std::string& driver) const {
    fs::create_directories(root_ + "/sys/class/infiniband/" + name + "/device");
    fs::create_symlink("../../../bus/drivers/" + driver,
                       root_ + "/sys/class/infiniband/" + name + "/device/driver");
  }
  [[nodiscard]] const std::string& path() const { return root_; }

 private:
  std::string root_;
};

std::string line_of(const std::string& text, const std::string& name) {
  const std::size_t at = text.find("  " + name);
  return at == std::string::npos ? "no line of " + name : text.substr(at, text.find('\n', at) - at);
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

constexpr const char* kTwoGpus =
    "version\t13000\n"
    "gpu\t0\tNVIDIA H200\t150754820096\t90\t1\t1\t1\n"
    "gpu\t1\tNVIDIA H200\t150754820096\t90\t1\t0\t0\n";

TEST(DoctorGpuTest, ReadsTheDriversAnswer) {
  const auto answer = parse_driver_answer(kTwoGpus);
  ASSERT_TRUE(answer.has_value());
  EXPECT_EQ(answer->version, 13000);
  EXPECT_EQ(answer->reason, "");
  ASSERT_EQ(answer->gpus.size(), 2U);
  EXPECT_EQ(answer->gpus[0].name, "NVIDIA H200");
  EXPECT_EQ(answer->gpus[0].memory_bytes, 150754820096);
  EXPECT_EQ(answer->gpus[0].capability, 90);
  EXPECT_TRUE(answer->gpus[0].exports_memory);
  EXPECT_TRUE(answer->gpus[0].dma_buf);
  EXPECT_FALSE(answer->gpus[1].dma_buf);
  EXPECT_EQ(answer->gpus[1].peers, (std::vector<std::int32_t>{0}));
  const auto none = parse_driver_answer("version\t12080\nnone\tthe driver shows no GPU\n");
  ASSERT_TRUE(none.has_value());
  EXPECT_EQ(none->reason, "the driver shows no GPU");
  for (const char* wrong : {"", "version\t13000\n", "gpu\t0\tname\n", "gpu\tx\tname\t1\t90\t1\t1\n",
                            "version\tnew\n", "gpu\t0\tname\t1\t90\t1\t1\tpeer\n", "something else\n"})
    EXPECT_FALSE(parse_driver_answer(wrong).has_value()) << wrong;
}

TEST(DoctorGpuTest, ReadsVersionAndParametersOfTheModule) {
  EXPECT_EQ(parse_module_version(
                "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12 19:39:15 UTC\n"
                "GCC version:  gcc version 11.4.0\n"),
            "535.183.01");
  EXPECT_EQ(parse_module_version(
                "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build"),
            "580.95.05");
  EXPECT_EQ(parse_module_version(""), "");
  EXPECT_EQ(parse_module_version("no number here"), "");
  const char* parameters = "EnableStreamMemOPs: 1\nRegistryDwords: \"PeerMappingOverride=1;\"\nRmMsg: \"\"\n";
  EXPECT_EQ(parse_module_parameter(parameters, "EnableStreamMemOPs"), "1");
  EXPECT_EQ(parse_module_parameter(parameters, "RegistryDwords"), "PeerMappingOverride=1;");
  EXPECT_EQ(parse_module_parameter(parameters, "RmMsg"), "");
  EXPECT_EQ(parse_module_parameter(parameters, "StreamMemOPs"), "");
}

TEST(DoctorGpuTest, SaysWhatEveryMissingPartCosts) {
  const FakeRoot root;
  DriverAnswer answer;
  answer.reason = "libcuda.so.1, the driver's library, is not found";
  const std::vector<Record> records = gpu_records(root.path(), answer);
  EXPECT_EQ(records.size(), 5U);
  const std::string text = format_gpus(records);
  for (const char* name : {"NVIDIA driver", "GDRCopy", "GPUDirect RDMA", "IBGDA", "EFA"})
    EXPECT_TRUE(contains(line_of(text, name), "missing: ")) << text;
  EXPECT_TRUE(contains(line_of(text, "NVIDIA driver"), "no kernel module is loaded; libcuda.so.1")) << text;
  EXPECT_TRUE(contains(line_of(text, "NVIDIA driver"), "nothing runs on GPUs")) << text;
  EXPECT_TRUE(contains(line_of(text, "GPUDirect RDMA"), "through host memory")) << text;
  EXPECT_TRUE(contains(line_of(text, "IBGDA"), "a ConnectX network card (mlx5), NVreg_EnableStreamMemOPs=1"))
      << text;
  EXPECT_TRUE(contains(line_of(text, "IBGDA"), "or GDRCopy")) << text;
}

TEST(DoctorGpuTest, FindsWhatIsThere) {
  const FakeRoot root;
  root.file("/proc/driver/nvidia/version",
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build\n");
  root.file("/proc/driver/nvidia/params",
            "EnableStreamMemOPs: 1\nRegistryDwords: \"PeerMappingOverride=1;\"\n");
  root.file("/dev/gdrdrv");
  root.file("/sys/module/nvidia_peermem/refcnt");
  root.card("mlx5_0", "mlx5_core");
  root.card("mlx5_1", "mlx5_core");
  root.card("rdmap0", "efa");
  const auto answer = parse_driver_answer(kTwoGpus);
  ASSERT_TRUE(answer.has_value());
  const std::string text = format_gpus(gpu_records(root.path(), *answer));
  EXPECT_EQ(line_of(text, "NVIDIA driver"),
            "  NVIDIA driver  found: kernel module 580.95.05, for CUDA up to 13.0");
  EXPECT_EQ(line_of(text, "GDRCopy"), "  GDRCopy        found: kernel module gdrdrv");
  EXPECT_EQ(line_of(text, "GPUDirect RDMA"), "  GPUDirect RDMA found: kernel module nvidia_peermem");
  EXPECT_EQ(line_of(text, "IBGDA"), "  IBGDA          found: mlx5_0 mlx5_1");
  EXPECT_EQ(line_of(text, "EFA"), "  EFA            found: rdmap0");
  EXPECT_EQ(line_of(text, "GPU 0"),
            "  GPU 0          NVIDIA H200, 140 GiB, compute capability 9.0; reaches the memory of GPU 1");
}

TEST(DoctorGpuTest, TakesDmaBufForPeermemAndGdrcopyForTheMapping) {
  const FakeRoot root;
  root.file("/proc/driver/nvidia/params", "EnableStreamMemOPs: 1\nRegistryDwords: \"\"\n");
  root.file("/sys/module/gdrdrv/refcnt");
  root.card("mlx5_0", "mlx5_core");
  const auto answer = parse_driver_answer("gpu\t0\tNVIDIA A100\t1024\t80\t0\t1\n");
  ASSERT_TRUE(answer.has_value());
  const std::string text = format_gpus(gpu_records(root.path(), *answer));
  EXPECT_TRUE(contains(line_of(text, "GPUDirect RDMA"), "found: DMA-BUF of the driver")) << text;
  EXPECT_TRUE(contains(line_of(text, "IBGDA"), "found: mlx5_0")) << text;
  EXPECT_TRUE(contains(line_of(text, "EFA"), "missing")) << text;
  EXPECT_EQ(line_of(text, "GPU 0"),
            "  GPU 0          NVIDIA A100, 1.00 KiB, compute capability 8.0; reaches no other GPU's memory; "
            "its memory "
            "cannot be shared between processes");
}

TEST(DoctorGpuTest, AsksThisMachineWithoutHarm) {
  const std::vector<Record> records = examine_gpus();
  EXPECT_GE(records.size(), 5U);
}

}  // namespace
}  // namespace shunt::bench
