#include <gtest/gtest.h>

#include <cstdint>
#include <limits>

#include <shunt/core/host.h>

namespace shunt {
namespace {

TEST(HostTest, FormatsBytesInBinaryUnits) {
  EXPECT_EQ(format_bytes(0), "0 bytes");
  EXPECT_EQ(format_bytes(1), "1 byte");
  EXPECT_EQ(format_bytes(17), "17 bytes");
  EXPECT_EQ(format_bytes(1023), "1023 bytes");
  EXPECT_EQ(format_bytes(1024), "1.00 KiB");
  EXPECT_EQ(format_bytes(812 * 1024), "812 KiB");
  EXPECT_EQ(format_bytes(std::int64_t{3} << 29), "1.50 GiB");
  EXPECT_EQ(format_bytes((1 << 20) - 1), "1.00 MiB");
  EXPECT_EQ(format_bytes(9999 * 1024 / 1000), "10.0 KiB");
  EXPECT_EQ(format_bytes(-2048), "-2.00 KiB");
  EXPECT_EQ(format_bytes(std::numeric_limits<std::int64_t>::max()), "8.00 EiB");
}

TEST(HostTest, ReadsThisMachine) {
  const HostInfo info = read_host_info();
  EXPECT_GE(info.cores, 1);
  EXPECT_EQ(info.cores, available_cores());
  EXPECT_FALSE(info.kernel.empty());
  EXPECT_GT(info.memory_total_bytes, std::int64_t{1} << 20);
  EXPECT_GT(info.memory_available_bytes, 0);
  EXPECT_LE(info.memory_available_bytes, info.memory_total_bytes);
}

}  // namespace
}  // namespace shunt
