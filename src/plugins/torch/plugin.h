#pragma once

// Shared by the sources of the plugin for libtorch. A source that includes torch takes 20 s and 1.3 GB to compile, so there
// is one for each concern.

#include <exception>
#include <string>

#include "torch_plugin.h"

namespace shunt::bench::torch_peer {

/// Text that outlives the exception it came from.
[[nodiscard]] inline const char* keep(const std::exception& error) noexcept {
  static thread_local std::string text;
  try {
    text = error.what();
    text.erase(text.find('\n') < text.size() ? text.find('\n') : text.size());  // what follows is a backtrace
  } catch (...) {
    return "libtorch has no memory left";
  }
  return text.c_str();
}

[[nodiscard]] TorchMovesWork* make_moves(const TorchMoves& moves, const char*& error) noexcept;
[[nodiscard]] TorchWork* make_top_k(const TorchTopK& top_k, const char*& error) noexcept;
[[nodiscard]] TorchWork* make_layer(const TorchLayer& layer, const char*& error) noexcept;

}  // namespace shunt::bench::torch_peer
