#include "output.h"

#include <cstdio>
#include <utility>

#include <fmt/format.h>

namespace shunt::cli {
namespace {

thread_local std::string* captured = nullptr;

}  // namespace

void print_text(const std::string& text) {
  if (captured != nullptr)
    *captured += text;
  else
    fmt::print("{}", text);
}

Captured::Captured(std::string& text) noexcept : before_(std::exchange(captured, &text)) {}

Captured::~Captured() {
  captured = before_;
}

}  // namespace shunt::cli
