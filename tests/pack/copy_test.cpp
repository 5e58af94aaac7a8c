#include "pack_fixture.h"

namespace shunt::test {
namespace {

class CopyTest : public PackTest {
 protected:
  void check(void (*copy)(void*, const void*, std::int64_t), std::int64_t bytes, std::size_t from_offset,
             std::size_t to_offset) {
    GuardedBuffer from(bytes, from_offset);
    GuardedBuffer to(bytes, to_offset);
    for (std::size_t i = 0; i < from.size(); ++i)
      from.data()[i] = static_cast<unsigned char>(i * 7 + 1 + i / 251);
    copy(to.data(), from.data(), bytes);
    store_fence();
    ASSERT_TRUE(from == to) << bytes << " bytes, offsets " << from_offset << " and " << to_offset;
    ASSERT_TRUE(to.guards_intact()) << bytes << " bytes, offsets " << from_offset << " and " << to_offset;
  }
};

TEST_P(CopyTest, CopiesEveryLengthAtEveryAlignmentOfTheDestination) {
  for (std::int64_t bytes = 0; bytes <= 300; ++bytes) {
    for (std::size_t offset = 0; offset < 64; offset += bytes % 5 == 0 ? 1 : 13) {
      check(kernels().copy, bytes, (offset * 11) % 64, offset);
      check(kernels().copy_streaming, bytes, (offset * 11) % 64, offset);
    }
  }
}

TEST_P(CopyTest, CopiesWholeRows) {
  for (const std::int64_t bytes : {896, 4096, 7168, 14336, 14337, 100003}) {
    for (const std::size_t offset : {0U, 1U, 31U, 32U, 63U}) {
      check(kernels().copy, bytes, 0, offset);
      check(kernels().copy, bytes, offset, 0);
      check(kernels().copy_streaming, bytes, 0, offset);
      check(kernels().copy_streaming, bytes, offset, 0);
    }
  }
}

SHUNT_FOR_EVERY_ISA(CopyTest);

}  // namespace
}  // namespace shunt::test
