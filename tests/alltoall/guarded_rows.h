#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

/// Rows of a test's own, apart from each other and with guard bytes around and between them.
class GuardedRows {
 public:
  static constexpr std::byte kGuard{0xa5};

  /// `gap` and `shift` in elements: between rows and before the first.
  GuardedRows(std::int64_t rows, std::int64_t row_bytes, std::int64_t element_bytes, std::int64_t gap,
              std::int64_t shift)
      : rows_(rows),
        row_bytes_(row_bytes),
        stride_(row_bytes + gap * element_bytes),
        begin_(64 + shift * element_bytes),
        bytes_(static_cast<std::size_t>(begin_ + rows * stride_ + 64), kGuard) {}

  [[nodiscard]] std::byte* data() { return bytes_.data() + begin_; }
  [[nodiscard]] std::byte* row(std::int64_t r) { return data() + r * stride_; }
  [[nodiscard]] std::int64_t stride() const { return stride_; }

  /// Overwrites the rows, as a caller may who got them back.
  void scribble() {
    for (std::int64_t r = 0; r < rows_; ++r) std::fill_n(row(r), row_bytes_, std::byte{0xdd});
  }

  [[nodiscard]] bool guards_intact() {
    const auto is_guard = [](std::byte b) { return b == kGuard; };
    if (!std::all_of(bytes_.data(), data(), is_guard)) return false;
    for (std::int64_t r = 0; r < rows_; ++r)
      if (!std::all_of(row(r) + row_bytes_, row(r) + stride_, is_guard)) return false;
    return std::all_of(row(rows_), bytes_.data() + bytes_.size(), is_guard);
  }

 private:
  std::int64_t rows_, row_bytes_, stride_, begin_;
  std::vector<std::byte> bytes_;
};
