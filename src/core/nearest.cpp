#include <shunt/core/nearest.h>

#include <algorithm>
#include <limits>

#include <fmt/format.h>
#include <fmt/ranges.h>

namespace shunt {
namespace {

std::string lower(std::string_view text) {
  std::string all(text);
  for (char& c : all)
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  return all;
}

/// Whether leaving letters out after the first makes `word` of `name`.
bool shortens(std::string_view word, std::string_view name) {
  if (name.empty() || word.front() != name.front()) return false;
  std::size_t found = 0;
  for (const char c : name)
    if (found < word.size() && word[found] == c) ++found;
  return found == word.size();
}

}  // namespace

std::size_t name_distance(std::string_view a, std::string_view b) {
  // Rows i - 2, i - 1 and i of the table of distances between prefixes (optimal string alignment).
  std::vector<std::size_t> before(b.size() + 1);
  std::vector<std::size_t> last(b.size() + 1);
  std::vector<std::size_t> row(b.size() + 1);
  for (std::size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (std::size_t i = 1; i <= a.size(); ++i) {
    std::swap(before, last);
    std::swap(last, row);
    row[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const std::size_t replace = last[j - 1] + (a[i - 1] == b[j - 1] ? 0 : 1);
      row[j] = std::min({last[j] + 1, row[j - 1] + 1, replace});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
        row[j] = std::min(row[j], before[j - 2] + 1);
    }
  }
  return row[b.size()];
}

std::string nearest_name(std::string_view word, const std::vector<std::string>& names) {
  std::string best;
  std::size_t best_distance = std::numeric_limits<std::size_t>::max();
  for (const std::string& name : names) {
    const std::size_t distance = name_distance(word, name);
    if (distance < best_distance) {
      best_distance = distance;
      best = name;
    }
  }
  return best;
}

std::string near_name(std::string_view word, const std::vector<std::string>& names) {
  const std::string wanted = lower(word);
  const std::string* near = nullptr;
  std::size_t fewest = std::numeric_limits<std::size_t>::max();
  for (const std::string& name : names) {
    const std::size_t edits = name_distance(wanted, lower(name));
    if (edits < fewest) {
      fewest = edits;
      near = &name;
    }
  }
  if (near == nullptr) return "";
  if (fewest <= (near->size() < 4 ? 1 : std::max<std::size_t>(2, near->size() / 3))) return *near;
  if (wanted.size() >= 3)
    for (const std::string& name : names)
      if (shortens(wanted, lower(name))) return name;
  return "";
}

std::string allowed_names(std::string_view word, const std::vector<std::string>& names) {
  const std::string near = near_name(word, names);
  const std::string list = fmt::format("llowed are {}", fmt::join(names, ", "));
  return near.empty() ? "a" + list : fmt::format("did you mean \"{}\"? A{}", near, list);
}

}  // namespace shunt
