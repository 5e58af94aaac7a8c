#include "json_position.h"

namespace shunt::detail {
namespace {

/// Walks over JSON that is known to be valid.
struct Walker {
  std::string_view text;
  std::size_t at = 0;

  [[nodiscard]] bool done() const noexcept { return at >= text.size(); }
  void space() {
    while (!done() && (text[at] == ' ' || text[at] == '\t' || text[at] == '\r' || text[at] == '\n')) ++at;
  }
  bool accept(char c) {
    space();
    if (done() || text[at] != c) return false;
    ++at;
    return true;
  }
  void string() {
    for (++at; !done() && text[at] != '"'; ++at) {
      if (text[at] == '\\') ++at;
    }
    ++at;
  }
  void value() {
    space();
    if (done()) return;
    if (text[at] == '"') return string();
    int depth = 0;
    for (; !done(); ++at) {
      const char c = text[at];
      if (c == '"') {
        string();
        --at;
      } else if (c == '[' || c == '{') {
        ++depth;
      } else if (c == ']' || c == '}') {
        if (depth == 0) return;
        if (--depth == 0) {
          ++at;
          return;
        }
      } else if (c == ',' && depth == 0) {
        return;
      }
    }
  }
};

/// Puts the walker on the colon after the last occurrence of `key` (the one a parser keeps); false where
/// there is none.
bool find_key(Walker& walker, std::string_view key, std::size_t& key_at) {
  bool found = false;
  std::size_t colon = 0;
  if (!walker.accept('{')) return false;
  while (walker.space(), !walker.done() && walker.text[walker.at] == '"') {
    const std::size_t begin = walker.at;
    walker.string();
    const std::string_view name = walker.text.substr(begin + 1, walker.at - begin - 2);
    walker.space();
    if (name == key) {
      found = true;
      key_at = begin;
      colon = walker.at;
    }
    walker.accept(':');
    walker.value();
    if (!walker.accept(',')) break;
  }
  walker.at = colon;
  return found;
}

std::int64_t column(std::size_t at) noexcept {
  return static_cast<std::int64_t>(at) + 1;
}

}  // namespace

std::int64_t json_column(std::string_view line, std::string_view key,
                         const std::vector<std::int64_t>& indices) {
  Walker walker{line};
  std::size_t at = 0;
  if (!find_key(walker, key, at)) return 1;
  walker.accept(':');
  walker.space();
  at = walker.at;
  for (const std::int64_t index : indices) {
    if (!walker.accept('[')) break;
    for (std::int64_t i = 0; i < index; ++i) {
      walker.value();
      if (!walker.accept(',')) return column(at);
    }
    walker.space();
    if (walker.done() || walker.text[walker.at] == ']') break;
    at = walker.at;
  }
  return column(at);
}

std::int64_t json_key_column(std::string_view line, std::string_view key) {
  Walker walker{line};
  std::size_t at = 0;
  return find_key(walker, key, at) ? column(at) : 1;
}

}  // namespace shunt::detail
