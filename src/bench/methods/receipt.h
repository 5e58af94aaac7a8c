#pragma once

#include <optional>
#include <utility>

#include <shunt/core/error.h>

namespace shunt::bench {

/// What a send half left for its receive half. Errors: Errc::invalid_state where there is nothing.
template <class Receipt>
[[nodiscard]] Receipt take_receipt(std::optional<Receipt>& kept) {
  if (!kept.has_value()) throw Error(Errc::invalid_state, "a receive half was called without its send half");
  Receipt receipt = std::move(*kept);
  kept.reset();
  return receipt;
}

}  // namespace shunt::bench
