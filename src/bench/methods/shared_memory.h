#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include <shunt/bench/method.h>

namespace shunt::bench {

/// Private memory on huge pages where allowed, pre-faulted.
class PrivateBuffer {
 public:
  PrivateBuffer() = default;
  PrivateBuffer(std::int64_t bytes, const char* what);
  ~PrivateBuffer();
  PrivateBuffer(PrivateBuffer&& other) noexcept;
  PrivateBuffer& operator=(PrivateBuffer&& other) noexcept;
  [[nodiscard]] std::byte* data() const noexcept { return data_; }
  [[nodiscard]] std::int64_t bytes() const noexcept { return bytes_; }

 private:
  std::byte* data_ = nullptr;
  std::int64_t bytes_ = 0;
};

/// The buffers of one rank that its methods share.
class SharedMemory {
 public:
  /// Collective.
  SharedMemory(Transport& transport, const Workload& workload, const SharedSizes& wanted,
               std::chrono::milliseconds deadline);

  /// Tokens of this rank's group in private memory, [T, H] dense.
  [[nodiscard]] const std::byte* private_tokens() const noexcept { return tokens_.data(); }
  [[nodiscard]] std::span<std::byte> private_token_bytes() const noexcept {
    return {tokens_.data(), static_cast<std::size_t>(tokens_.bytes())};
  }

  SharedSizes sizes;
  std::unique_ptr<Collectives> collectives;  ///< Null where no method asked for it
  SymmetricBuffer region;
  SymmetricBuffer symmetric_tokens;
  std::uint64_t region_epoch =
      0;  ///< Last value signalled in `region`; signals of all methods that use it only grow
  PrivateBuffer pack, receive, rows, outputs;
  PrivateBuffer combined;  ///< [T, H] of out_dtype

 private:
  PrivateBuffer tokens_;
};

}  // namespace shunt::bench
