#pragma once

#include <rdma/fabric.h>
#include <rdma/fi_cm.h>
#include <rdma/fi_domain.h>
#include <rdma/fi_endpoint.h>
#include <rdma/fi_eq.h>
#include <rdma/fi_errno.h>
#include <rdma/fi_rma.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace shunt::ofi {

/// How a signal gets behind the payload that was put before it.
enum class Delivery : std::uint8_t {
  /// As an RMA write of its word: the provider keeps the order of RMA writes and its hardware stores an aligned
  /// word of 8 bytes in one piece. No work for the receiver's CPU.
  words,
  /// As a small two-sided message that the provider delivers after the RMA writes before it; the receiver
  /// stores the word. Stream providers (tcp) need this: they copy what a socket gives, which may end inside a
  /// word.
  messages,
  /// As a small two-sided message that says how many RMA writes went before it. Every write carries immediate
  /// data, the receiver counts them, and stores the word once they have all arrived. For providers without
  /// order (efa, shm).
  counted,
};
[[nodiscard]] const char* delivery_name(Delivery delivery) noexcept;

struct Closer {
  template <typename Object>
  void operator()(Object* object) const noexcept {
    fi_close(&object->fid);
  }
};
template <typename Object>
using Handle = std::unique_ptr<Object, Closer>;

struct InfoCloser {
  void operator()(fi_info* info) const noexcept { fi_freeinfo(info); }
};
using Info = std::unique_ptr<fi_info, InfoCloser>;

/// What to open. Empty and unset parts are chosen.
struct FabricRequest {
  std::string provider;                ///< As libfabric names it
  std::string node;                    ///< Address to bind to, for providers over IP sockets
  std::string domain;                  ///< Name of a NIC as `fi_info` shows it
  std::int32_t local_rank = 0;         ///< Without `domain`, NIC local_rank mod (number of NICs) is used
  std::optional<Delivery> delivery{};  ///< Errc::unavailable where the provider does not promise it
};

/// One endpoint with its queue and address table: what a rank has of the fabric.
/// Errors: Errc::unavailable naming the provider and libfabric's text.
class Fabric {
 public:
  explicit Fabric(const FabricRequest& request);

  [[nodiscard]] const fi_info& info() const noexcept { return *info_; }
  [[nodiscard]] std::string_view provider() const noexcept { return info_->fabric_attr->prov_name; }
  [[nodiscard]] std::string_view domain_name() const noexcept { return info_->domain_attr->name; }
  [[nodiscard]] Delivery delivery() const noexcept { return delivery_; }
  /// RMA writes towards one peer take effect in the order they were issued.
  [[nodiscard]] bool writes_in_order() const noexcept;
  [[nodiscard]] bool messages_in_order() const noexcept;
  [[nodiscard]] bool needs_local_registration() const noexcept { return has_mode(FI_MR_LOCAL); }
  [[nodiscard]] bool has_mode(int mr_mode) const noexcept {
    return (info_->domain_attr->mr_mode & mr_mode) != 0;
  }
  [[nodiscard]] std::int64_t max_write_bytes() const noexcept;
  [[nodiscard]] std::int64_t inject_bytes() const noexcept;

  [[nodiscard]] fid_ep* endpoint() const noexcept { return endpoint_.get(); }
  [[nodiscard]] fid_cq* queue() const noexcept { return queue_.get(); }

  /// This endpoint's address, for insert() of its peers.
  [[nodiscard]] std::string address() const;
  [[nodiscard]] fi_addr_t insert(std::string_view address);
  void remove(fi_addr_t address) noexcept;

  /// After this nothing of the endpoint's operations is read or written; only destruction is allowed.
  void close_endpoint() noexcept { endpoint_.reset(); }

  /// Registers memory; null for none (bytes == 0). `access`: FI_REMOTE_WRITE, FI_WRITE, FI_SEND, FI_RECV.
  [[nodiscard]] Handle<fid_mr> register_memory(std::byte* base, std::int64_t bytes, std::uint64_t access);

 private:
  [[noreturn]] void fail(const char* what, ssize_t code) const;

  // In this order, so that they close in the opposite one.
  Info info_;
  Handle<fid_fabric> fabric_;
  Handle<fid_domain> domain_;
  Handle<fid_av> addresses_;
  Handle<fid_cq> queue_;
  Handle<fid_ep> endpoint_;
  Delivery delivery_ = Delivery::counted;
  std::uint64_t next_key_ = 1;
};

/// What a negative return value of libfabric means.
[[nodiscard]] std::string fabric_text(ssize_t code);

/// Whether the provider's addresses are IP sockets, so that it binds to a host's address.
[[nodiscard]] bool binds_to_host_address(std::string_view provider) noexcept;

/// Names of usable providers with reliable datagrams, messages and RMA, best first, joined by ", ". Initialises
/// libfabric in a forked child only: a process that forks ranks afterwards must not have done so itself.
[[nodiscard]] std::string list_providers();

}  // namespace shunt::ofi
