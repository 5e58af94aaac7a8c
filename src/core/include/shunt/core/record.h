#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include <shunt/core/host.h>

namespace shunt {

/// One value of a record. monostate is JSON null.
using RecordValue = std::variant<std::monostate, bool, std::int64_t, double, std::string, std::vector<double>,
                                 std::vector<std::int64_t>, std::vector<std::string>>;

/// Ordered key/value line of a result file. Keys keep the order in which they were first set.
class Record {
 public:
  explicit Record(std::string_view kind);  ///< First key is "record".
  Record& set(std::string_view key, RecordValue value);
  Record& set(std::string_view key, const char* value) { return set(key, RecordValue(std::string(value))); }
  // Without these a constant 0 would be taken for a null const char*.
  Record& set(std::string_view key, std::int64_t value) { return set(key, RecordValue(value)); }
  Record& set(std::string_view key, double value) { return set(key, RecordValue(value)); }
  Record& set(std::string_view key, bool value) { return set(key, RecordValue(value)); }
  /// Null where the key is absent.
  [[nodiscard]] const RecordValue* find(std::string_view key) const noexcept;
  [[nodiscard]] const std::vector<std::pair<std::string, RecordValue>>& fields() const noexcept {
    return fields_;
  }
  /// One line of JSON without the newline; doubles are written shortest-round-trip, not-a-number as null.
  [[nodiscard]] std::string to_json() const;

 private:
  std::vector<std::pair<std::string, RecordValue>> fields_;
};

/// What a machine is, as result files and `shunt doctor` both show it: cpu_model, cpu_vendor, cpu_features, kernel,
/// cores, l2_bytes, l3_bytes, memory_total_bytes, memory_available_bytes.
void set_host_fields(Record& record, const HostInfo& host);

/// First line of every result file: {"record":"context","format":1, version, git revision, date, host, CPU,
/// kernel, cores, memory, compiler, seed-independent command line}. `command` is the argv joined as a shell would read it.
[[nodiscard]] Record context_record(const std::vector<std::string>& command);

/// Writes text to `path` so that a reader sees either nothing or the whole: a temporary file beside it, then a
/// rename without replacing.
/// Errors: Errc::io where the file exists (nothing is overwritten) or cannot be written, with path and reason.
void write_new_file(const std::string& path, std::string_view text);

/// Version of Shunt, "0.1.0", and the git revision it was built from ("unknown" outside a checkout).
[[nodiscard]] const char* version() noexcept;
[[nodiscard]] const char* git_revision() noexcept;

}  // namespace shunt
