#include <gtest/gtest.h>

#include <stdlib.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "memory_limits.h"

namespace shunt {
namespace {

constexpr std::int64_t kMib = 1 << 20;

/// A root directory with only the files a case needs.
class MemoryLimitsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string name = (std::filesystem::temp_directory_path() / "shunt-memory-XXXXXX").string();
    ASSERT_NE(mkdtemp(name.data()), nullptr);
    root_ = name;
  }
  void TearDown() override { std::filesystem::remove_all(root_); }

  void write(const std::string& path, const std::string& text) {
    const std::filesystem::path file = root_ + path;
    std::filesystem::create_directories(file.parent_path());
    std::ofstream(file) << text;
  }
  void write_meminfo(std::int64_t mib) {
    write("/proc/meminfo",
          "MemTotal:       99999999 kB\nMemAvailable:   " + std::to_string(mib * 1024) + " kB\n");
  }
  void write_v2(const std::string& group, const std::string& max, std::int64_t current,
                std::int64_t inactive) {
    write("/sys/fs/cgroup" + group + "/memory.max", max + "\n");
    write("/sys/fs/cgroup" + group + "/memory.current", std::to_string(current) + "\n");
    write("/sys/fs/cgroup" + group + "/memory.stat",
          "anon 1\ninactive_file " + std::to_string(inactive) + "\nactive_file 9\n");
  }
  void write_v1(const std::string& group, std::int64_t limit, std::int64_t usage, std::int64_t inactive) {
    write("/sys/fs/cgroup/memory" + group + "/memory.limit_in_bytes", std::to_string(limit) + "\n");
    write("/sys/fs/cgroup/memory" + group + "/memory.usage_in_bytes", std::to_string(usage) + "\n");
    write("/sys/fs/cgroup/memory" + group + "/memory.stat",
          "inactive_file 5\ntotal_inactive_file " + std::to_string(inactive) + "\n");
  }
  [[nodiscard]] std::int64_t available() const { return detail::available_memory_bytes(root_); }

  std::string root_;
};

constexpr const char* kV2Mount = "25 20 0:23 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";
constexpr const char* kV1Mounts =
    "30 20 0:24 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n"
    "31 20 0:25 / /sys/fs/cgroup/memory rw shared:9 - cgroup cgroup rw,memory\n";

TEST_F(MemoryLimitsTest, SaysMinusOneWhenNothingCanBeRead) {
  EXPECT_EQ(available(), -1);
}

TEST_F(MemoryLimitsTest, TakesMemAvailableWithoutCgroups) {
  write_meminfo(100);
  EXPECT_EQ(available(), 100 * kMib);
}

TEST_F(MemoryLimitsTest, TakesTheTightestAncestorOfVersion2) {
  write_meminfo(1000);
  write("/proc/self/mountinfo", kV2Mount);
  write("/proc/self/cgroup", "0::/a/b\n");
  write_v2("/a/b", "max", 10 * kMib, 0);
  write_v2("/a", std::to_string(80 * kMib), 50 * kMib, 20 * kMib);
  EXPECT_EQ(available(), 50 * kMib);  // 80 - (50 - 20)
  write_v2("/a/b", std::to_string(30 * kMib), 10 * kMib, 0);
  EXPECT_EQ(available(), 20 * kMib);
  write_meminfo(7);
  EXPECT_EQ(available(), 7 * kMib);
}

TEST_F(MemoryLimitsTest, TakesTheTightestAncestorOfVersion1) {
  write_meminfo(1000);
  write("/proc/self/mountinfo", kV1Mounts);
  write("/proc/self/cgroup", "5:cpu,cpuacct:/other\n4:memory:/job/step\n0::/\n");
  write_v1("/job/step", 900 * kMib, 100 * kMib, 0);
  write_v1("/job", 400 * kMib, 150 * kMib, 50 * kMib);
  write_v1("", INT64_C(9223372036854771712), 500 * kMib, 0);
  EXPECT_EQ(available(), 300 * kMib);
}

TEST_F(MemoryLimitsTest, LooksAtTheMountPointInsideAContainer) {
  write_meminfo(1000);
  write("/proc/self/mountinfo", "31 20 0:25 /docker/c1 /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n");
  write("/proc/self/cgroup", "4:memory:/docker/c1\n");
  write_v1("", 64 * kMib, 60 * kMib, 0);
  EXPECT_EQ(available(), 4 * kMib);
  // A group outside of what is mounted cannot be followed; its mount point still limits.
  write("/proc/self/cgroup", "4:memory:/docker/c12\n");
  EXPECT_EQ(available(), 4 * kMib);
  write("/proc/self/mountinfo", kV2Mount);
  write("/proc/self/cgroup", "0::/../sibling\n");
  write_v2("", std::to_string(9 * kMib), 8 * kMib, 0);
  EXPECT_EQ(available(), 1 * kMib);
}

TEST_F(MemoryLimitsTest, SaysZeroWhenTheGroupIsOverItsLimit) {
  write_meminfo(1000);
  write("/proc/self/mountinfo", kV2Mount);
  write("/proc/self/cgroup", "0::/a\n");
  write_v2("/a", std::to_string(10 * kMib), 12 * kMib, 0);
  EXPECT_EQ(available(), 0);
}

}  // namespace
}  // namespace shunt
