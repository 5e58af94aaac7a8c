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
    if (error.code() == Errc::timeout || error.code() == Errc::peer_lost) stage = Stage::dead;
    throw;
  }
}

}  // namespace shunt
