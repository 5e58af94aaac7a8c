#include "row_stream.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace shunt {
namespace {

/// A put of this size costs no more per byte than a larger one, and lets the network begin while the rest is copied.
constexpr std::int64_t kLongPut = 512 << 10;

}  // namespace

std::uint64_t hash_bytes(std::uint64_t hash, const void* data, std::int64_t bytes) {
  const auto* p = static_cast<const std::byte*>(data);
  while (bytes > 0) {
    std::uint64_t piece = 0;
    const std::int64_t take = std::min<std::int64_t>(bytes, 8);
    std::memcpy(&piece, p, static_cast<std::size_t>(take));
    hash = (hash ^ piece) * 0x100000001b3U;
    hash ^= hash >> 29;
    p += take;
    bytes -= take;
  }
  return hash;
}

void Outbox::begin_half() {
  if (used_ <= bytes_ / 2) return;
  transport_->quiet();
  used_ = 0;
}

std::byte* Outbox::room(std::int64_t bytes) {
  if (!fits(bytes)) {
    transport_->quiet();
    used_ = 0;
  }
  std::byte* const place = ring_ + used_;
  used_ += bytes;
  return place;
}

void RowStream::add(const std::byte* row, std::int64_t bytes) {
  if (run_bytes_ > 0 && run_ + run_bytes_ != row) end_run();
  if (run_bytes_ == 0) run_ = row;
  run_bytes_ += bytes;
}

std::byte* RowStream::room(std::int64_t bytes) {
  end_run();
  if (staged_bytes_ >= kLongPut || !outbox_.fits(bytes)) flush();
  std::byte* const place = outbox_.room(bytes);
  if (staged_bytes_ == 0) staged_ = place;
  staged_bytes_ += bytes;
  return place;
}

void RowStream::end_run() {
  if (run_bytes_ == 0) return;
  const std::byte* from = run_;
  std::int64_t left = run_bytes_;
  run_bytes_ = 0;
  if (left >= direct_put_bytes_) {
    flush();
    outbox_.put(peer_, offset_, from, left);
    offset_ += left;
    return;
  }
  while (left > 0) {
    const std::int64_t part = std::min({left, kLongPut, outbox_.bytes()});
    kernels_.copy(room(part), from, part);
    from += part;
    left -= part;
  }
}

void RowStream::flush() {
  if (staged_bytes_ == 0) return;
  outbox_.put(peer_, offset_, staged_, staged_bytes_);
  offset_ += staged_bytes_;
  staged_bytes_ = 0;
}

void RowStream::finish() {
  end_run();
  flush();
}

void RowStream::finish_with_signal(std::int64_t signal_offset, std::uint64_t value) {
  const std::byte* from = run_;
  std::int64_t bytes = run_bytes_;
  if (bytes > 0 && bytes >= direct_put_bytes_) {
    flush();
  } else {
    end_run();
    from = staged_;
    bytes = std::exchange(staged_bytes_, 0);
  }
  run_bytes_ = 0;
  if (bytes > 0)
    outbox_.put_signal(peer_, offset_, from, bytes, signal_offset, value);
  else
    outbox_.signal(peer_, signal_offset, value);
  offset_ += bytes;
}

}  // namespace shunt
