#include "crossings.h"

#include <algorithm>
#include <numeric>

namespace shunt {

Crossings::Crossings(std::span<const std::int32_t> homes, std::int32_t num_ranks, Path path,
                     std::span<const std::uint8_t> live)
    : homes_(static_cast<std::size_t>(num_ranks), 0), live_(live.begin(), live.end()) {
  if (live_.empty()) live_.assign(homes_.size(), 1);
  // Numbered anew, in the order of the lowest ranks: names of nodes need not be dense.
  std::vector<std::int32_t> names;
  for (std::size_t rank = 0; rank < homes.size(); ++rank) {
    const auto found = std::find(names.begin(), names.end(), homes[rank]);
    homes_[rank] = static_cast<std::int32_t>(found - names.begin());
    if (found == names.end()) names.push_back(homes[rank]);
  }
  ranks_.resize(homes_.size());
  std::iota(ranks_.begin(), ranks_.end(), 0);
  for (const std::int32_t rank : ranks_) {
    const auto home = static_cast<std::size_t>(homes_[static_cast<std::size_t>(rank)]);
    if (home >= members_.size()) members_.resize(home + 1);
    place_.push_back(static_cast<std::int32_t>(members_[home].size()));
    if (live_[static_cast<std::size_t>(rank)] != 0) members_[home].push_back(rank);
  }
  any_ = std::count_if(members_.begin(), members_.end(),
                       [](const auto& of_home) { return !of_home.empty(); }) > 1;
  if (!any_) return;
  const bool several =
      std::any_of(members_.begin(), members_.end(), [](const auto& of_home) { return of_home.size() > 1; });
  hierarchical_ = path == Path::hierarchical || (path == Path::automatic && several);
  for (const std::int32_t rank : ranks_) {
    if (live_[static_cast<std::size_t>(rank)] == 0) continue;
    max_slots_ = std::max(max_slots_, static_cast<std::int32_t>(sources(rank).size()));
    max_destinations_ = std::max(max_destinations_, static_cast<std::int32_t>(destinations(rank).size()));
    max_covered_ = std::max(max_covered_, static_cast<std::int32_t>(covered(rank).size()));
  }
}

std::int32_t Crossings::landing(std::int32_t source, std::int32_t owner) const noexcept {
  if (!hierarchical_) return owner;
  const std::span<const std::int32_t> members = home(owner);
  return members[static_cast<std::size_t>(place_[static_cast<std::size_t>(source)]) % members.size()];
}

std::span<const std::int32_t> Crossings::covered(std::int32_t landing) const noexcept {
  if (hierarchical_) return home(landing);
  return std::span(ranks_).subspan(static_cast<std::size_t>(landing), 1);
}

std::span<const std::int32_t> Crossings::home(std::int32_t rank) const noexcept {
  return members_[static_cast<std::size_t>(homes_[static_cast<std::size_t>(rank)])];
}

std::vector<std::int32_t> Crossings::destinations(std::int32_t source) const {
  std::vector<std::int32_t> found;
  std::vector<bool> seen(homes_.size(), false);
  const auto size = static_cast<std::int32_t>(homes_.size());
  for (std::int32_t step = 1; step < size; ++step) {
    const std::int32_t owner = (source + step) % size;
    if (!crosses(source, owner) || live_[static_cast<std::size_t>(owner)] == 0) continue;
    const std::int32_t there = landing(source, owner);
    if (seen[static_cast<std::size_t>(there)]) continue;
    seen[static_cast<std::size_t>(there)] = true;
    found.push_back(there);
  }
  return found;
}

std::vector<std::int32_t> Crossings::sources(std::int32_t landing_rank) const {
  std::vector<std::int32_t> found;
  for (const std::int32_t source : ranks_)
    if (live_[static_cast<std::size_t>(source)] != 0 && crosses(source, landing_rank) &&
        landing(source, landing_rank) == landing_rank)
      found.push_back(source);
  return found;
}

std::int32_t Crossings::slot(std::int32_t source, std::int32_t landing_rank) const {
  const std::vector<std::int32_t> all = sources(landing_rank);
  return static_cast<std::int32_t>(std::find(all.begin(), all.end(), source) - all.begin());
}

}  // namespace shunt
