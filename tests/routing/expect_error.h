#pragma once

#include <string>

#include <gtest/gtest.h>

#include <shunt/core/error.h>

namespace shunt::test {

/// Calls `body`; it must throw shunt::Error with this code and exactly this message.
template <class Body>
void expect_error(Errc code, const std::string& message, Body&& body) {
  try {
    body();
    ADD_FAILURE() << "no error; expected: " << message;
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), code);
    EXPECT_EQ(error.what(), message);
  }
}

}  // namespace shunt::test
