#include <shunt/scenario/nodes.h>

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cctype>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <shunt/core/error.h>
#include <shunt/core/nearest.h>

namespace shunt::scenario {
namespace {

constexpr std::size_t kMaxNodes = 65536;
constexpr std::size_t kDigits = 9;

[[noreturn]] void refuse(std::string_view text, const std::string& why) {
  throw Error(Errc::invalid_argument, fmt::format("node list \"{}\": {}", text, why));
}

bool is_number(std::string_view text) {
  return !text.empty() && text.size() <= kDigits &&
         std::all_of(text.begin(), text.end(), [](unsigned char c) { return std::isdigit(c) != 0; });
}

std::string_view trimmed(std::string_view text) {
  while (!text.empty() && std::isspace(static_cast<unsigned char>(text.front())) != 0) text.remove_prefix(1);
  while (!text.empty() && std::isspace(static_cast<unsigned char>(text.back())) != 0) text.remove_suffix(1);
  return text;
}

/// Parts between commas that stand in no brackets.
std::vector<std::string_view> components(std::string_view list) {
  std::vector<std::string_view> parts;
  std::size_t begin = 0;
  bool inside = false;
  for (std::size_t i = 0; i <= list.size(); ++i) {
    if (i == list.size() || (list[i] == ',' && !inside)) {
      parts.push_back(trimmed(list.substr(begin, i - begin)));
      begin = i + 1;
    } else if (list[i] == '[') {
      if (inside) refuse(list, "brackets do not nest");
      inside = true;
    } else if (list[i] == ']') {
      if (!inside) refuse(list, "there is a ']' without its '['");
      inside = false;
    }
  }
  if (inside) refuse(list, "there is a '[' without its ']'");
  return parts;
}

void expand_range(std::string_view list, std::string_view range, std::vector<std::string>& numbers) {
  const std::size_t dash = range.find('-');
  if (dash == std::string_view::npos) {
    if (range.empty()) refuse(list, "a part between commas is empty");
    numbers.emplace_back(range);
    return;
  }
  const std::string_view first = range.substr(0, dash);
  const std::string_view last = range.substr(dash + 1);
  if (!is_number(first) || !is_number(last))
    refuse(list, fmt::format("\"{}\" is not a range of numbers such as 001-016", range));
  const int begin = std::stoi(std::string(first));
  const int end = std::stoi(std::string(last));
  if (end < begin) refuse(list, fmt::format("range \"{}\" runs down", range));
  if (static_cast<std::size_t>(end - begin) >= kMaxNodes)
    refuse(list, fmt::format("range \"{}\" has more than {} nodes", range, kMaxNodes));
  for (int i = begin; i <= end; ++i) numbers.push_back(fmt::format("{:0{}}", i, last.size()));
}

void expand(std::string_view list, std::string_view part, std::vector<std::string>& names) {
  const std::size_t open = part.find('[');
  if (open == std::string_view::npos) {
    names.emplace_back(part);
  } else {
    const std::size_t close = part.find(']', open);
    const std::string_view after = part.substr(close + 1);
    if (after.find('[') != std::string_view::npos) refuse(list, "a name may have one pair of brackets");
    std::vector<std::string> numbers;
    std::string_view inside = part.substr(open + 1, close - open - 1);
    for (;;) {
      const std::size_t comma = inside.find(',');
      expand_range(list, trimmed(inside.substr(0, comma)), numbers);
      if (comma == std::string_view::npos) break;
      inside.remove_prefix(comma + 1);
    }
    for (const std::string& number : numbers)
      names.push_back(fmt::format("{}{}{}", part.substr(0, open), number, after));
  }
  if (names.size() > kMaxNodes) refuse(list, fmt::format("it has more than {} nodes", kMaxNodes));
}

template <class Item>
const Item& named(const std::vector<Item>& items, std::string_view name, std::string_view spec,
                  const std::string& what) {
  std::vector<std::string> names;
  for (const Item& item : items) {
    if (item.name == name) return item;
    names.push_back(item.name);
  }
  refuse(spec, names.empty() ? fmt::format("there is no {} \"{}\", since the system has none", what, name)
                             : fmt::format("there is no {} \"{}\"; did you mean \"{}\"? There are {}", what,
                                           name, nearest_name(name, names), fmt::join(names, ", ")));
}

/// Nodes of PARTITION:GROUP:N, the best first.
std::vector<std::string> of_group(const System& system, std::string_view spec, const NodeStates& states,
                                  const std::vector<std::string>& passed_over) {
  const std::size_t first = spec.find(':');
  const std::size_t second = spec.find(':', first + 1);
  if (second == std::string_view::npos || spec.find(':', second + 1) != std::string_view::npos)
    refuse(spec, "allowed are PARTITION:GROUP:N and PARTITION:GROUP:max_avail");
  const std::string_view count = spec.substr(second + 1);
  const bool all = count == "max_avail";
  if (!all && (!is_number(count) || std::stoi(std::string(count)) == 0))
    refuse(spec, fmt::format("\"{}\" is neither a number of nodes nor max_avail", count));
  const Partition& partition = named(system.partitions, spec.substr(0, first), spec, "partition");
  const NodeGroup& group = named(partition.groups, spec.substr(first + 1, second - first - 1), spec, "group");
  std::vector<std::string> found;
  // Nodes that are in use come after those that are free; Slurm queues the job for them.
  for (const std::string_view wanted : {"idle", "completing", "allocated", "reserved"}) {
    if (all && wanted == "allocated") continue;
    for (const std::string& node : group.nodes) {
      const auto state = states.find(node);
      if ((state == states.end() ? std::string_view("idle") : std::string_view(state->second)) != wanted)
        continue;
      if (std::find(passed_over.begin(), passed_over.end(), node) == passed_over.end()) found.push_back(node);
    }
  }
  if (all) {
    if (found.empty()) refuse(spec, "no node of the group is available");
    return found;
  }
  const auto wanted = static_cast<std::size_t>(std::stoi(std::string(count)));
  if (found.size() < wanted)
    refuse(spec, fmt::format("{} nodes are asked for and the group has {} that can be taken", wanted,
                             found.size()));
  found.resize(wanted);
  return found;
}

}  // namespace

std::vector<std::string> parse_node_list(std::string_view text) {
  std::vector<std::string> names;
  if (trimmed(text).empty()) return names;
  for (const std::string_view part : components(text)) {
    if (part.empty()) refuse(text, "a part between commas is empty");
    expand(text, part, names);
  }
  for (const std::string& name : names)
    for (const char c : name)
      if (std::isalnum(static_cast<unsigned char>(c)) == 0 && c != '-' && c != '_' && c != '.')
        refuse(text, "names of nodes have letters, digits, '-', '_' and '.' only");
  return names;
}

std::vector<std::string> resolve_nodes(const System& system, const std::vector<std::string>& specs,
                                       const std::vector<std::string>& exclude, const NodeStates& states,
                                       const std::vector<std::string>& taken) {
  std::vector<std::string> excluded;
  for (const std::string& spec : exclude)
    for (std::string& name : parse_node_list(spec)) excluded.push_back(std::move(name));
  std::vector<std::string> found;
  for (const std::string& spec : specs) {
    const bool group = spec.find(':') != std::string::npos;
    std::vector<std::string> passed_over = excluded;
    passed_over.insert(passed_over.end(), taken.begin(), taken.end());
    passed_over.insert(passed_over.end(), found.begin(), found.end());
    for (std::string& name : group ? of_group(system, spec, states, passed_over) : parse_node_list(spec)) {
      if (std::find(excluded.begin(), excluded.end(), name) == excluded.end())
        found.push_back(std::move(name));
    }
  }
  std::sort(found.begin(), found.end());
  found.erase(std::unique(found.begin(), found.end()), found.end());
  if (!specs.empty() && found.empty())
    throw Error(Errc::invalid_argument,
                fmt::format("nodes {}: no node is left{}", fmt::join(specs, ", "),
                            exclude.empty() ? "" : " of those, without the excluded ones"));
  return found;
}

std::string image_cache_name(std::string_view url) {
  const bool local = !url.empty() && (url.front() == '/' || url.front() == '.');
  if (const std::size_t scheme = url.find("://"); scheme != std::string_view::npos)
    url.remove_prefix(scheme + 3);
  std::string tag = "notag";
  std::string_view image = url;
  if (const std::size_t colon = url.rfind(':'); colon != std::string_view::npos) {
    tag = url.substr(colon + 1);
    image = url.substr(0, colon);
  }
  const std::size_t slash = image.rfind('/');
  const std::string_view base = slash == std::string_view::npos ? image : image.substr(slash + 1);
  const std::string_view before =
      local || slash == std::string_view::npos ? std::string_view() : image.substr(0, slash);
  std::string name = fmt::format("{}{}{}__{}.sqsh", before, local ? "" : "__", base, tag);
  for (char& c : name)
    if (c == '/' || c == '#') c = '_';
  name.erase(0, name.find_first_not_of('_'));
  return name;
}

bool looks_secret(std::string_view name) {
  constexpr std::array<std::string_view, 9> kEndings = {
      "TOKEN", "SECRET", "PASSWORD", "PASSWD", "KEY", "CREDENTIAL", "CREDENTIALS", "SECRETS", "PASSWORDS"};
  std::string word;
  for (std::size_t i = 0; i <= name.size(); ++i) {
    const bool inside = i < name.size() && std::isalpha(static_cast<unsigned char>(name[i])) != 0;
    if (inside) {
      word += static_cast<char>(std::toupper(static_cast<unsigned char>(name[i])));
      continue;
    }
    for (const std::string_view ending : kEndings)
      if (word.size() >= ending.size() &&
          std::string_view(word).substr(word.size() - ending.size()) == ending)
        return true;
    word.clear();
  }
  return false;
}

bool has_credentials(std::string_view url) {
  if (const std::size_t scheme = url.find("://"); scheme != std::string_view::npos)
    url.remove_prefix(scheme + 3);
  const std::string_view authority = url.substr(0, url.find('/'));
  const std::size_t at = authority.rfind('@');
  return at != std::string_view::npos && authority.substr(0, at).find(':') != std::string_view::npos;
}

std::string without_secrets(std::string text) {
  constexpr std::size_t kShortest = 6;
  for (char** entry = environ; entry != nullptr && *entry != nullptr; ++entry) {
    const std::string_view pair = *entry;
    const std::size_t equals = pair.find('=');
    if (equals == std::string_view::npos || !looks_secret(pair.substr(0, equals))) continue;
    const std::string_view value = pair.substr(equals + 1);
    if (value.size() < kShortest) continue;
    const std::string shown = fmt::format("[{}]", pair.substr(0, equals));
    for (std::size_t at = text.find(value); at != std::string::npos; at = text.find(value, at + shown.size()))
      text.replace(at, value.size(), shown);
  }
  return text;
}

}  // namespace shunt::scenario
