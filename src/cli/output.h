#pragma once

#include <string>

namespace shunt::cli {

/// Writes to standard output, or to the string of this thread's Captured.
void print_text(const std::string& text);

/// While it lives, what this thread prints by print_text() is appended to a string instead.
class Captured {
 public:
  /// Ownership: borrows `text`.
  explicit Captured(std::string& text) noexcept;
  ~Captured();
  Captured(const Captured&) = delete;
  Captured& operator=(const Captured&) = delete;

 private:
  std::string* before_;
};

}  // namespace shunt::cli
