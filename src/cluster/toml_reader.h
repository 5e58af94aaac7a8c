#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include <toml++/toml.h>

namespace shunt::detail {

/// Text of the file. Errors: Errc::io where it cannot be read.
[[nodiscard]] std::string read_text_file(const std::string& path);

/// Parses TOML. Errors: Errc::io with file:line:column.
[[nodiscard]] toml::table parse_toml(const std::string& path);

/// Reads the keys of one table and refuses those that are not allowed.
/// Ownership: borrows `path` and `table`, which must outlive it.
/// Errors:    Errc::io with file:line:column and what is allowed; an unknown key comes with the nearest one.
class TomlReader {
 public:
  TomlReader(const std::string& path, const toml::table& table, std::vector<std::string> allowed,
             std::string prefix = {});

  [[nodiscard]] bool has(const std::string& key) const;
  [[nodiscard]] std::string text(const std::string& key) const;
  [[nodiscard]] std::string text_or(const std::string& key, const std::string& otherwise) const;
  [[nodiscard]] std::int64_t integer(const std::string& key, std::int64_t low, std::int64_t high) const;
  [[nodiscard]] std::int64_t integer_or(const std::string& key, std::int64_t low, std::int64_t high,
                                        std::int64_t otherwise) const;
  /// A finite number, written as an integer or with a point.
  [[nodiscard]] double number(const std::string& key, double low, double high) const;
  [[nodiscard]] double number_or(const std::string& key, double low, double high, double otherwise) const;
  [[nodiscard]] bool flag_or(const std::string& key, bool otherwise) const;
  /// Index in `names` of the text of this key.
  [[nodiscard]] std::size_t choice(const std::string& key, const std::vector<std::string>& names) const;
  [[nodiscard]] std::size_t choice_or(const std::string& key, const std::vector<std::string>& names,
                                      std::size_t otherwise) const;
  [[nodiscard]] std::vector<std::int64_t> integers(const std::string& key, std::int64_t low,
                                                   std::int64_t high) const;
  /// A list of texts, none of them empty; empty where the key is missing.
  [[nodiscard]] std::vector<std::string> texts_or_none(const std::string& key) const;
  /// A table below this one.
  [[nodiscard]] TomlReader table(const std::string& key, std::vector<std::string> allowed) const;

  /// Refuses the value of `key`, at its place; where it is missing, at the place of the table.
  [[noreturn]] void fail(const std::string& key, const std::string& why) const;

 private:
  const toml::node& get(const std::string& key) const;

  const std::string& path_;
  const toml::table& table_;
  std::string prefix_;
};

/// format = 1, which every preset of ours begins with.
void expect_format(const TomlReader& reader, std::int64_t format);

}  // namespace shunt::detail
