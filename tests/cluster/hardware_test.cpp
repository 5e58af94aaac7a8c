#include <shunt/cluster/hardware.h>

#include <algorithm>

#include "temporary_directory.h"

namespace shunt {
namespace {

constexpr const char* kHardware = "presets/hardware";
constexpr const char* kLink =
    "format = 1\ndescription = \"d\"\nsource = \"s\"\nfabric = \"nvlink\"\ngb_per_s = 450\n";
constexpr const char* kGpu =
    "format = 1\ndescription = \"d\"\nsource = \"s\"\nmemory_bytes = 85_899_345_920\nhbm_gb_per_s = 3350\n"
    "bf16_tflops = 989\nscale_up = \"nv\"\npcie = \"pci\"\n";
constexpr const char* kNic = "format = 1\ndescription = \"d\"\nsource = \"s\"\nlink = \"ib\"\n";
constexpr const char* kNode =
    "format = 1\ndescription = \"d\"\nsource = \"s\"\ngpu = \"g\"\ngpus = 8\nscale_up = "
    "\"switched\"\nswitches = 4\n"
    "nic = \"n\"\nnics = 8\n";

/// A directory with one preset of each kind.
class HardwareTest : public testing::Test {
 protected:
  HardwareTest() {
    dir_.write("links/nv.toml", kLink);
    dir_.write("links/pci.toml", replaced(kLink, "nvlink", "pcie"));
    dir_.write("links/ib.toml", replaced(kLink, "nvlink", "infiniband"));
    dir_.write("gpus/g.toml", kGpu);
    dir_.write("nics/n.toml", kNic);
    dir_.write("nodes/node.toml", kNode);
  }

  template <class Find>
  void refuse(const std::string& file, const std::string& content, const Find& find,
              const std::string& message) const {
    const std::string path = dir_.write(file, content);
    expect_error(Errc::io, path + ":" + message, [&] { (void)find(path, dir_.path()); });
  }

  TemporaryDirectory dir_;
};

TEST_F(HardwareTest, EveryShippedPresetParses) {
  EXPECT_EQ(list_gpus(kHardware).size(), 12U);
  EXPECT_GE(list_nodes(kHardware).size(), 20U);
  for (const std::string& name : list_gpus(kHardware)) EXPECT_EQ(find_gpu(name, kHardware).name, name);
  for (const std::string& name : list_nodes(kHardware)) EXPECT_EQ(find_node(name, kHardware).name, name);
  for (const std::string& name : list_nics(kHardware)) EXPECT_EQ(find_nic(name, kHardware).name, name);
  for (const std::string& name : list_links(kHardware)) EXPECT_EQ(find_link(name, kHardware).name, name);
}

TEST_F(HardwareTest, PublishedNumbersAreRight) {
  const GpuSpec h100 = find_gpu("h100", kHardware);
  EXPECT_EQ(h100.memory_bytes, std::int64_t{80} << 30);
  EXPECT_EQ(h100.hbm_gb_per_s, 3350);
  EXPECT_EQ(h100.bf16_tflops, 989);
  EXPECT_EQ(h100.fp4_tflops, 0);
  EXPECT_EQ(h100.scale_up.gb_per_s, 450);
  const GpuSpec l40s = find_gpu("l40s", kHardware);
  EXPECT_FALSE(l40s.has_scale_up);
  EXPECT_EQ(l40s.pcie.gb_per_s, 31.5);
  const NodeSpec rack = find_node("gb200-nvl72", kHardware);
  EXPECT_EQ(rack.gpus, 4);
  EXPECT_EQ(rack.domain_gpus, 72);
  EXPECT_EQ(rack.domain_hosts(), 18);
  EXPECT_EQ(rack.network_gb_per_s_per_gpu(), 100);
  EXPECT_EQ(find_node("dgx-a100", kHardware).network_gb_per_s_per_gpu(), 25);
  EXPECT_EQ(find_node("aws-p4d", kHardware).network_gb_per_s_per_gpu(), 6.25);
  EXPECT_EQ(find_node("aws-p5", kHardware).network_gb_per_s_per_gpu(), 50);
  EXPECT_EQ(find_node("aws-p6-b300", kHardware).network_gb_per_s_per_gpu(), 100);
  EXPECT_EQ(find_node("mi300x-8", kHardware).scale_up, ScaleUp::full_mesh);
  EXPECT_EQ(find_nic("cx7-ndr", kHardware).usable_gb_per_s, 48.5);
}

TEST_F(HardwareTest, ResolvesWhatAPresetRefersTo) {
  const NodeSpec node = find_node("node", dir_.path());
  EXPECT_EQ(node.gpu.name, "g");
  EXPECT_EQ(node.gpu.pcie.fabric, Fabric::pcie);
  EXPECT_EQ(node.nic.link.fabric, Fabric::infiniband);
  EXPECT_EQ(node.domain_gpus, 8);
}

TEST_F(HardwareTest, NamesTheNearestPreset) {
  expect_error(
      Errc::invalid_argument,
      "GPU preset \"gg\" does not exist; did you mean \"g\"? Allowed are a path that ends in .toml and g",
      [&] { (void)find_gpu("gg", dir_.path()); });
  refuse("nodes/x.toml", replaced(kNode, "\"g\"", "\"h\""), find_node,
         "4:7: gpu: GPU preset \"h\" does not exist; did you mean \"g\"? Allowed are a path that ends in "
         ".toml and g");
}

TEST_F(HardwareTest, NamesLineAndColumnOfEveryMistake) {
  refuse("links/x.toml", replaced(kLink, "gb_per_s", "gbps"), find_link,
         "5:1: unknown key \"gbps\"; did you mean \"gb_per_s\"? Allowed are format, description, source, "
         "fabric, "
         "gb_per_s, usable_gb_per_s");
  refuse("links/x.toml", replaced(kLink, "nvlink", "nvlnk"), find_link,
         "4:10: fabric: \"nvlnk\" is not known; did you mean \"nvlink\"? Allowed are nvlink, xgmi, pcie, "
         "infiniband, ethernet, efa");
  refuse("links/x.toml", replaced(kLink, "450", "-1"), find_link,
         "5:12: gb_per_s: expected a number in [0.001, 1000000]");
  refuse("links/x.toml", replaced(kLink, "450", "inf"), find_link,
         "5:12: gb_per_s: expected a number in [0.001, 1000000]");
  refuse("links/x.toml", replaced(kLink, "450", "\"450\""), find_link,
         "5:12: gb_per_s: expected a number in [0.001, 1000000]");
  refuse("links/x.toml", std::string(kLink) + "usable_gb_per_s = 451\n", find_link,
         "6:19: usable_gb_per_s: expected a number in [0.001, 450]");
  refuse("gpus/x.toml", replaced(kGpu, "85_899_345_920", "80"), find_gpu,
         "4:16: memory_bytes: expected an integer in [1073741824, 17592186044416]");
  refuse("gpus/x.toml", replaced(kGpu, "\"nv\"", "\"pci\""), find_gpu,
         "7:12: scale_up: \"pci\" is pcie, expected nvlink or xgmi");
  refuse("gpus/x.toml", replaced(kGpu, "\"pci\"", "\"nv\""), find_gpu,
         "8:8: pcie: \"nv\" is nvlink, expected pcie");
  refuse("nics/x.toml", replaced(kNic, "ib", "nv"), find_nic,
         "4:8: link: \"nv\" is nvlink, a network card needs infiniband, ethernet or efa");
  refuse("nodes/x.toml", std::string(kNode) + "domain_gpus = 12\n", find_node,
         "10:15: domain_gpus: 12 is not a multiple of the 8 GPUs of a host");
  refuse("nodes/x.toml", replaced(kNode, "switched", "full_mesh"), find_node,
         "7:12: switches: only where scale_up is \"switched\"");
  refuse("nodes/x.toml", replaced(kNode, "nics = 8\n", ""), find_node, "1:1: key \"nics\" is missing");
}

TEST_F(HardwareTest, DirectoryFollowsTheEnvironment) {
  ASSERT_EQ(unsetenv("SHUNT_HARDWARE"), 0);
  EXPECT_EQ(list_gpus(hardware_directory()), list_gpus(kHardware));
  ASSERT_EQ(setenv("SHUNT_HARDWARE", dir_.path().c_str(), 1), 0);
  EXPECT_EQ(hardware_directory(), dir_.path());
  ASSERT_EQ(unsetenv("SHUNT_HARDWARE"), 0);
}

}  // namespace
}  // namespace shunt
