#pragma once

#include <cstdint>

#include <shunt/transport/transport.h>

namespace shunt {

/// Puts, waits and an all-to-all that the library of symmetric GPU memory puts on a CUDA stream of the caller, the host
/// waiting for nothing. Beside the calls of Transport: these neither ring a bell nor have a deadline; whoever waits for
/// the stream has one.
/// Arguments are not checked. Threads: the transport's.
class StreamPuts {
 public:
  StreamPuts() = default;
  virtual ~StreamPuts() = default;
  StreamPuts(const StreamPuts&) = delete;
  StreamPuts& operator=(const StreamPuts&) = delete;

  /// `bytes`, 0 too, from symmetric memory of this rank to `offset` of the peer's part of `to`; once they are there, the
  /// peer's word at `word` of `words` becomes `value`. The peer may be this rank. `from` may be reused once the peer says
  /// that they came.
  virtual void put_signal(std::int32_t peer, const SymmetricBuffer& to, std::int64_t offset, const void* from,
                          std::int64_t bytes, const SymmetricBuffer& words, std::int64_t word,
                          std::uint64_t value, void* stream) = 0;
  /// What follows on the stream waits until the own word is at least `value`, and sees what the signal announces.
  virtual void wait(const SymmetricBuffer& words, std::int64_t word, std::uint64_t value, void* stream) = 0;
  /// Collective. From symmetric memory, `bytes` to every rank in the order of ranks, to `offset` of `to` in the order of
  /// those they come from. On every rank `to` must be ready for them.
  virtual void all_to_all(const SymmetricBuffer& to, std::int64_t offset, const void* from,
                          std::int64_t bytes, void* stream) = 0;
};

/// Those of the library that the memory of `transport` is of; null where there are none. Lives as long as the transport.
[[nodiscard]] StreamPuts* stream_puts(const Transport& transport) noexcept;

}  // namespace shunt
