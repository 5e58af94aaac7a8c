#pragma once

#include <cstdint>
#include <string>

#include <gtest/gtest.h>

#include <shunt/cluster/model.h>
#include <shunt/core/error.h>

namespace shunt::plan {

inline constexpr double kGiB = 1024.0 * 1024 * 1024;

inline ModelSpec preset(const std::string& name) {
  return find_model(name, "presets/models");
}

/// GPT as in arXiv 2205.05198, without the vocabulary, whose embedding its tables leave out.
inline ModelSpec gpt(std::int64_t layers, std::int64_t hidden, std::int64_t heads) {
  ModelSpec model;
  model.name = "gpt";
  model.hidden = hidden;
  model.vocab = 8;
  model.gated = false;
  model.dense_intermediate = 4 * hidden;
  model.attention.heads = model.attention.kv_heads = heads;
  model.attention.head_dim = hidden / heads;
  model.layers.resize(static_cast<std::size_t>(layers));
  return model;
}

template <class Body>
void expect_refused(const std::string& message, Body&& body) {
  try {
    body();
    ADD_FAILURE() << "no error; expected: " << message;
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Errc::invalid_argument);
    EXPECT_EQ(error.what(), message);
  }
}

}  // namespace shunt::plan
