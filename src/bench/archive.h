#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include <shunt/core/error.h>

namespace shunt::bench {

/// Bytes on the way from rank 0 to the process that started it: same program, same machine.
struct Writer {
  std::string bytes;
  template <class T>
  void put(const T& value) {
    if constexpr (std::is_same_v<T, std::string>) {
      put(static_cast<std::int64_t>(value.size()));
      bytes += value;
    } else {
      static_assert(std::is_trivially_copyable_v<T>);
      bytes.append(reinterpret_cast<const char*>(&value), sizeof value);
    }
  }
};

struct Reader {
  std::string_view bytes;
  std::string_view take(std::size_t size) {
    if (size > bytes.size())
      throw Error(Errc::internal, "a benchmark rank handed over a result that is cut short");
    const std::string_view part = bytes.substr(0, size);
    bytes.remove_prefix(size);
    return part;
  }
  template <class T>
  void get(T& value) {
    if constexpr (std::is_same_v<T, std::string>) {
      std::int64_t size = 0;
      get(size);
      value = std::string(take(static_cast<std::size_t>(size)));
    } else {
      std::memcpy(&value, take(sizeof value).data(), sizeof value);
    }
  }
};

// One list of fields serves both directions, so they cannot disagree.
template <class Archive, class T>
void field(Archive& archive, T& value) {
  if constexpr (std::is_same_v<Archive, Writer>)
    archive.put(value);
  else
    archive.get(value);
}

template <class Archive, class T, class Each>
void list(Archive& archive, std::vector<T>& values, const Each& each) {
  auto count = static_cast<std::int64_t>(values.size());
  field(archive, count);
  values.resize(static_cast<std::size_t>(count));
  for (T& value : values) each(value);
}

}  // namespace shunt::bench
