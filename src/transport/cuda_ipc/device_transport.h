#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <shunt/core/error.h>
#include <shunt/transport/transport.h>

#include "bells.h"
#include "cuda_ipc/device_api.h"
#include "cuda_ipc/file_exchange.h"

namespace shunt::cuda_ipc {

/// Ranks of one machine over GPU memory that all of them can load and store. What the ranks agree on, and that they
/// are there, goes over a host transport (`control`).
/// Signals lie in GPU memory, where kernels find them; see Bells for how a host waits for one.
/// put() and its kin take sources in host or in device memory. Direct stores by kernels are ordered before a signal
/// where the caller has synchronised their stream.
class DeviceTransport final : public Transport {
 public:
  /// Collective. `control` must offer load and store among all ranks and outlive this, unless it is `owned`.
  /// Errors: Errc::unavailable on every rank, naming two GPUs that do not reach each other; as control.allocate().
  DeviceTransport(Transport& control, std::unique_ptr<DeviceApi> device, Deadline deadline,
                  std::unique_ptr<Transport> owned = nullptr);
  ~DeviceTransport() override;

  [[nodiscard]] std::string_view name() const noexcept override { return "cuda_ipc"; }
  [[nodiscard]] Capabilities capabilities() const noexcept override {
    return {.ordered = true,
            .load_store = true,
            .device_memory = true,
            .maskable = control_.capabilities().maskable};
  }
  SymmetricBuffer allocate(std::int64_t bytes, const char* what, Deadline deadline) override;
  void release(SymmetricBuffer& buffer) noexcept override;
  [[nodiscard]] std::byte* peer_pointer(const SymmetricBuffer& buffer,
                                        std::int32_t peer) const noexcept override;
  void put(const SymmetricBuffer& buffer, std::int32_t peer, std::int64_t offset, const void* from,
           std::int64_t bytes) override;
  void put_signal(const SymmetricBuffer& buffer, std::int32_t peer, std::int64_t offset, const void* from,
                  std::int64_t bytes, std::int64_t signal_offset, std::uint64_t value) override;
  void signal(const SymmetricBuffer& buffer, std::int32_t peer, std::int64_t signal_offset,
              std::uint64_t value) override;
  std::uint64_t wait_signal(const SymmetricBuffer& buffer, std::int64_t signal_offset, std::uint64_t value,
                            Deadline deadline, const WaitSite& site) override;
  std::uint64_t poll_signal(const SymmetricBuffer& buffer, std::int64_t signal_offset) override;
  void fence() override {}
  void quiet() override { device_->synchronize(); }
  void exclude(std::span<const std::int32_t> ranks) override;
  void set_wait_breaker(WaitBreaker* breaker) noexcept override { bells_.set_breaker(breaker); }
  void set_waits_for_room(bool on) noexcept override { control_.set_waits_for_room(on); }
  [[nodiscard]] Transport& host() noexcept override { return control_; }

 private:
  /// What a rank tells of itself once.
  struct Identity {
    DeviceId device = {};
    std::uint64_t process = 0;  ///< Random; equal for ranks that are threads of one process
    std::int32_t pid = 0;
    std::int32_t ordinal = 0;
    bool shares_with_processes = true;
    FileExchange::Address address = {};
  };
  /// What a rank brings to an allocation.
  struct Proposal {
    std::int64_t bytes = 0;
    DeviceMemory memory = {};
    std::int64_t granule = 1;
  };
  struct Buffer {
    std::vector<std::byte*> parts = {};  ///< [R]; null for ranks excluded before. Empty: free
  };

  [[nodiscard]] bool holds(const SymmetricBuffer& buffer, std::int32_t peer) const noexcept {
    return static_cast<std::uint32_t>(peer) < static_cast<std::uint32_t>(world_.size) &&
           static_cast<std::size_t>(buffer.id) < buffers_.size() &&
           !buffers_[static_cast<std::size_t>(buffer.id)].parts.empty();
  }
  [[nodiscard]] std::byte* target(const SymmetricBuffer& buffer, std::int32_t peer, std::int64_t offset,
                                  std::int64_t bytes) const;
  [[nodiscard]] std::byte* signal_target(const SymmetricBuffer& buffer, std::int32_t peer,
                                         std::int64_t signal_offset) const;
  void store_and_ring(std::byte* word, std::int32_t peer, std::uint64_t value);

  void open_records(Deadline deadline);
  template <class Record>
  [[nodiscard]] std::vector<Record> exchange(const Record& mine, Deadline deadline);
  void agree(const std::optional<Error>& own, const char* what, Deadline deadline);
  void meet_devices(Deadline deadline);
  [[nodiscard]] std::optional<Error> find_unreachable() const;
  [[nodiscard]] std::int64_t check_proposals(const std::vector<Proposal>& proposals, const char* what) const;
  [[nodiscard]] std::optional<Error> attempt(const std::function<void()>& step) const;
  void share_parts(std::vector<std::byte*>& parts, std::int64_t bytes, const char* what, Deadline deadline,
                   std::optional<Error>& failure);
  void release_parts(std::vector<std::byte*>& parts) noexcept;
  [[nodiscard]] bool same_process(std::int32_t rank) const noexcept;
  [[nodiscard]] std::int32_t lowest_rank() const noexcept;

  std::unique_ptr<Transport> owned_;
  Transport& control_;
  std::unique_ptr<DeviceApi> device_;
  std::optional<FileExchange> files_;  ///< Where some rank is another process
  std::vector<Identity> identities_;   ///< [R]
  std::vector<Buffer> buffers_;        ///< By SymmetricBuffer::id

  Bells bells_;
  SymmetricBuffer records_;      ///< In host memory: see exchange()
  std::uint64_t exchanges_ = 0;  ///< Over records_
  bool records_stale_ = false;   ///< Survivors of an exclusion may have come to different exchanges
  std::uint64_t serial_ = 0;     ///< Of the allocations that survivors have agreed on
};

}  // namespace shunt::cuda_ipc
