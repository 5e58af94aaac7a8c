#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

#include <shunt/scenario/model.h>

namespace shunt::scenario {

/// The names that "node-[001-003,7],login" stands for, in its order, leading zeros as wide as the end of a range.
/// Errors: Errc::invalid_argument for brackets that do not match, ranges that run down, and more than 65,536 names.
[[nodiscard]] std::vector<std::string> parse_node_list(std::string_view text);

/// What Slurm says of a node, as in sinfo: idle, completing, allocated, reserved, ...
using NodeStates = std::map<std::string, std::string>;

/// The nodes that specs ask for, each once and sorted: names, ranges, and PARTITION:GROUP:N or
/// PARTITION:GROUP:max_avail, which take nodes of a group in the order idle, completing, allocated, reserved.
/// `states` may lack nodes; those count as idle. Nodes in `taken` are passed over by groups.
/// Errors: Errc::invalid_argument for an unknown partition or group (with the nearest), too few nodes, or none left.
[[nodiscard]] std::vector<std::string> resolve_nodes(const System& system,
                                                     const std::vector<std::string>& specs,
                                                     const std::vector<std::string>& exclude,
                                                     const NodeStates& states = {},
                                                     const std::vector<std::string>& taken = {});

/// File of an image in the cache of CloudAI, "nvcr.io_nvidia__pytorch__24.02-py3.sqsh".
[[nodiscard]] std::string image_cache_name(std::string_view url);

/// Whether a name looks like that of a secret: a word of it ends in TOKEN, SECRET, PASSWORD, PASSWD, KEY or CREDENTIAL.
[[nodiscard]] bool looks_secret(std::string_view name);

/// Whether a URL carries a user's password: "https://user:password@host/...".
[[nodiscard]] bool has_credentials(std::string_view url);

/// The text with the value of every variable of this process's environment that looks like a secret replaced by
/// "[NAME]". Values shorter than 6 characters stay: they would match words.
[[nodiscard]] std::string without_secrets(std::string text);

}  // namespace shunt::scenario
