// Any bytes read as .npy end in an array whose parts agree, or in a shunt::Error.
#include <shunt/core/error.h>
#include <shunt/routing/npy.h>

#include "memory_file.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const shunt::fuzz::MemoryFile file(data, size);
  try {
    const shunt::NpyArray array = shunt::read_npy(file.path());
    if (array.num_elements() < 0 || array.data.size() > size) std::abort();
  } catch (const shunt::Error& error) {
    if (error.code() == shunt::Errc::internal) std::abort();
  }
  return 0;
}
