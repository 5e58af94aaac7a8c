#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

namespace shunt {

/// What went wrong, in terms a caller can act on.
enum class Errc {
  invalid_argument,  ///< The caller passed something outside the documented range. Nothing was changed.
  invalid_state,     ///< Calls came in an order the object does not allow. Nothing was changed.
  out_of_memory,     ///< A buffer would not fit the memory available. Nothing was allocated.
  overflow,          ///< A rank would receive more rows than `max_recv_rows`; the step is void on every rank.
  timeout,           ///< A peer did not answer before the deadline. The object is dead.
  peer_lost,         ///< A peer's process ended. The object is dead.
  peer_masked,       ///< A peer was lost and masked; the step is void on every survivor and must be repeated.
  unavailable,       ///< This machine or build cannot do it; the message gives the reason.
  io,                ///< A file could not be read or written, or its content is malformed.
  check_failed,      ///< A result differs from its reference.
  internal,          ///< A bug of Shunt.
};

/// The one exception of the library. `what()` is a whole sentence: what was given, what is allowed, where.
class Error : public std::runtime_error {
 public:
  Error(Errc code, const std::string& message, std::int32_t peer = -1)
      : std::runtime_error(message), code_(code), peer_(peer) {}
  [[nodiscard]] Errc code() const noexcept { return code_; }
  /// The rank that timeout and peer_lost are about, -1 where none is known.
  [[nodiscard]] std::int32_t peer() const noexcept { return peer_; }

 private:
  Errc code_;
  std::int32_t peer_;
};

/// Name of a code as written in result records, for example "peer_lost".
[[nodiscard]] const char* errc_name(Errc code) noexcept;

/// Exit status of a program that ends with this error: 2 for what the user can mend in the command or its
/// files (invalid_argument, io, out_of_memory, overflow, unavailable), 1 for everything else.
[[nodiscard]] int exit_status(Errc code) noexcept;

}  // namespace shunt
