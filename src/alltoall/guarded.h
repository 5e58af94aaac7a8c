#pragma once

#include <utility>

#include <shunt/core/error.h>

#include "impl.h"

namespace shunt {

template <class Body>
auto AllToAll::Impl::guarded(Body&& body) {
  try {
    return std::forward<Body>(body)();
  } catch (const Error& error) {
    const bool lost = error.code() == Errc::timeout || error.code() == Errc::peer_lost;
    if (lost && membership != nullptr) void_and_mask(error);
    if (lost) stage = Stage::dead;
    throw;
  }
}

}  // namespace shunt
