#pragma once

#include <cstddef>
#include <cstdint>

#include <shunt/pack/kernels.h>
#include <shunt/transport/transport.h>

namespace shunt {

/// The ring in symmetric memory from which messages and small rows are put. Nothing in it is overwritten before it has
/// been read out.
class Outbox {
 public:
  Outbox() = default;
  Outbox(Transport& transport, const SymmetricBuffer& buffer, std::int64_t offset, std::int64_t bytes)
      : transport_(&transport), buffer_(&buffer), ring_(buffer.local + offset), bytes_(bytes) {}

  /// Before the first room of a half: makes place while little is on its way, not in the middle of the half.
  void begin_half();
  /// Room that nothing on its way out uses any more; what was written to earlier rooms must have been put.
  [[nodiscard]] std::byte* room(std::int64_t bytes);
  [[nodiscard]] bool fits(std::int64_t bytes) const noexcept { return used_ + bytes <= bytes_; }
  [[nodiscard]] std::int64_t bytes() const noexcept { return bytes_; }
  void put(std::int32_t peer, std::int64_t offset, const void* from, std::int64_t bytes) {
    transport_->put(*buffer_, peer, offset, from, bytes);
  }
  void put_signal(std::int32_t peer, std::int64_t offset, const void* from, std::int64_t bytes,
                  std::int64_t signal_offset, std::uint64_t value) {
    transport_->put_signal(*buffer_, peer, offset, from, bytes, signal_offset, value);
  }
  void signal(std::int32_t peer, std::int64_t signal_offset, std::uint64_t value) {
    transport_->signal(*buffer_, peer, signal_offset, value);
  }
  [[nodiscard]] std::int64_t direct_put_bytes() const { return transport_->capabilities().direct_put_bytes; }

 private:
  Transport* transport_ = nullptr;
  const SymmetricBuffer* buffer_ = nullptr;
  std::byte* ring_ = nullptr;
  std::int64_t bytes_ = 0;
  std::int64_t used_ = 0;  ///< Since the last quiet()
};

/// Rows on their way to consecutive places of one peer's memory. Rows that lie together go as one put; small ones are
/// copied into the outbox first, so that many of them make one put. One stream of an outbox at a time.
class RowStream {
 public:
  RowStream(Outbox& outbox, const PackKernels& kernels, std::int32_t peer, std::int64_t offset)
      : outbox_(outbox),
        kernels_(kernels),
        peer_(peer),
        offset_(offset),
        direct_put_bytes_(outbox.direct_put_bytes()) {}

  /// `row` stays untouched until the peer has answered this step.
  void add(const std::byte* row, std::int64_t bytes);
  /// A row to be written in place; the next call sends it on.
  [[nodiscard]] std::byte* room(std::int64_t bytes);
  void finish();
  /// The signal goes with the last rows.
  void finish_with_signal(std::int64_t signal_offset, std::uint64_t value);

 private:
  void end_run();
  void flush();

  Outbox& outbox_;
  const PackKernels& kernels_;
  std::int32_t peer_;
  std::int64_t offset_;  ///< Of what is not sent yet
  std::int64_t direct_put_bytes_;
  const std::byte* run_ = nullptr;
  std::int64_t run_bytes_ = 0;
  std::byte* staged_ = nullptr;
  std::int64_t staged_bytes_ = 0;
};

/// FNV-1a over 8 bytes at a time: for telling replicas apart and finding damage, not for security.
[[nodiscard]] std::uint64_t hash_bytes(std::uint64_t hash, const void* data, std::int64_t bytes);
inline constexpr std::uint64_t kHashSeed = 0xcbf29ce484222325U;

}  // namespace shunt
