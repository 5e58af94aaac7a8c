#include "ofi/fabric.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <mutex>
#include <vector>

#include <shunt/core/child.h>
#include <shunt/core/error.h>

namespace shunt::ofi {
namespace {

constexpr std::uint32_t kVersion = FI_VERSION(1, 14);
/// Longest single write; beyond this nothing is gained, and 32-bit lengths are safe in every provider.
constexpr std::int64_t kMostWriteBytes = std::int64_t{1} << 30;
/// Best first. What is not here can be named by the user.
constexpr std::array<const char*, 5> kPreferred = {"efa", "cxi", "verbs;ofi_rxm", "psm3", "tcp;ofi_rxm"};

/// For all providers to look at their devices.
constexpr std::chrono::seconds kProviderTime{30};

constexpr std::uint64_t kMessageOrder = FI_ORDER_SAS | FI_ORDER_SAW;

/// A send that the tcp provider keeps in its own staging buffer while the socket is full is reported complete,
/// but leaves only with a later call, which a rank that computes or ends does not make. The library has no
/// call for this setting, and one of the user's stands.
void keep_nothing_in_user_space() {
  static std::once_flag once;
  std::call_once(once, [] { setenv("FI_TCP_STAGING_SBUF_SIZE", "0", 0); });
}

[[nodiscard]] Info query(const std::string& provider, const std::string& node, std::uint64_t order) {
  keep_nothing_in_user_space();
  const Info hints(fi_allocinfo());
  if (hints == nullptr) throw Error(Errc::out_of_memory, "libfabric: no memory for a query");
  hints->caps = FI_MSG | FI_RMA;
  hints->mode = FI_CONTEXT | FI_CONTEXT2 | FI_RX_CQ_DATA;
  hints->ep_attr->type = FI_EP_RDM;
  hints->domain_attr->mr_mode =
      FI_MR_LOCAL | FI_MR_VIRT_ADDR | FI_MR_ALLOCATED | FI_MR_PROV_KEY | FI_MR_ENDPOINT;
  hints->domain_attr->threading = FI_THREAD_DOMAIN;
  hints->domain_attr->resource_mgmt = FI_RM_ENABLED;
  hints->tx_attr->msg_order = order;
  hints->rx_attr->msg_order = order;
  if (!provider.empty()) hints->fabric_attr->prov_name = strdup(provider.c_str());
  const bool bind = !node.empty() && binds_to_host_address(provider);
  fi_info* found = nullptr;
  const int code =
      fi_getinfo(kVersion, bind ? node.c_str() : nullptr, nullptr, bind ? FI_SOURCE : 0, hints.get(), &found);
  return Info(code == 0 ? found : nullptr);
}

/// The most ordered offer that the provider makes.
[[nodiscard]] Info query_best(const std::string& provider, const std::string& node) {
  constexpr std::array<std::uint64_t, 4> kOrders = {kMessageOrder | FI_ORDER_WAW, kMessageOrder, FI_ORDER_SAS,
                                                    FI_ORDER_NONE};
  for (const std::uint64_t order : kOrders) {
    if (Info found = query(provider, node, order)) return found;
  }
  return nullptr;
}

/// One of the offers: that of the NIC asked for, or of NIC local_rank mod (number of NICs).
[[nodiscard]] Info choose_domain(const fi_info* offers, const FabricRequest& request,
                                 const std::string& provider) {
  std::vector<const fi_info*> domains;
  std::vector<std::string_view> names;
  for (const fi_info* offer = offers; offer != nullptr; offer = offer->next) {
    const std::string_view name = offer->domain_attr->name;
    if (std::find(names.begin(), names.end(), name) != names.end()) continue;
    domains.push_back(offer);
    names.push_back(name);
  }
  std::size_t index = static_cast<std::size_t>(request.local_rank) % domains.size();
  if (!request.domain.empty()) {
    index = static_cast<std::size_t>(std::find(names.begin(), names.end(), request.domain) - names.begin());
    if (index == names.size()) {
      throw Error(Errc::unavailable, fmt::format("libfabric: provider {} has no domain '{}'; it has {}",
                                                 provider, request.domain, fmt::join(names, ", ")));
    }
  }
  Info chosen(fi_dupinfo(domains[index]));
  if (chosen == nullptr) throw Error(Errc::out_of_memory, "libfabric: no memory for a provider's data");
  return chosen;
}

[[nodiscard]] Info find(const FabricRequest& request) {
  std::vector<std::string> candidates;
  if (request.provider.empty()) {
    candidates.assign(kPreferred.begin(), kPreferred.end());
  } else {
    candidates.push_back(request.provider);
  }
  for (const std::string& provider : candidates) {
    if (const Info offers = query_best(provider, request.node)) {
      return choose_domain(offers.get(), request, provider);
    }
  }
  throw Error(Errc::unavailable,
              fmt::format("libfabric: no provider {} here offers reliable datagrams with messages and RMA{}; "
                          "fi_info lists what there is",
                          fmt::join(candidates, ", "),
                          request.node.empty() ? "" : fmt::format(" at address {}", request.node)));
}

[[nodiscard]] std::uint64_t promised_order(const fi_info& info) noexcept {
  return info.tx_attr->msg_order & info.rx_attr->msg_order;
}

[[nodiscard]] bool can_deliver(const fi_info& info, Delivery delivery) noexcept {
  const std::uint64_t order = promised_order(info);
  switch (delivery) {
    case Delivery::words:
      return (order & (FI_ORDER_WAW | FI_ORDER_RMA_WAW)) != 0 && info.ep_attr->max_order_waw_size >= 4096;
    case Delivery::messages:
      return (order & kMessageOrder) == kMessageOrder;
    case Delivery::counted:
      return info.domain_attr->cq_data_size >= sizeof(std::uint32_t);
  }
  return false;
}

[[nodiscard]] Delivery choose_delivery(const fi_info& info, std::optional<Delivery> asked) {
  const std::string_view provider = info.fabric_attr->prov_name;
  if (asked) {
    if (can_deliver(info, *asked)) return *asked;
    throw Error(Errc::unavailable,
                fmt::format("libfabric: provider {} does not promise what delivery '{}' needs", provider,
                            delivery_name(*asked)));
  }
  // Only of InfiniBand's and RoCE's reliable connections is it known that a word is stored in one piece and
  // that whoever reads it then reads the payload.
  if (provider.starts_with("verbs") && can_deliver(info, Delivery::words)) return Delivery::words;
  if (can_deliver(info, Delivery::messages)) return Delivery::messages;
  if (can_deliver(info, Delivery::counted)) return Delivery::counted;
  throw Error(Errc::unavailable,
              fmt::format("libfabric: provider {} promises neither that messages follow RMA writes nor "
                          "immediate data of 4 bytes",
                          provider));
}

}  // namespace

const char* delivery_name(Delivery delivery) noexcept {
  switch (delivery) {
    case Delivery::words:
      return "words";
    case Delivery::messages:
      return "messages";
    case Delivery::counted:
      return "counted";
  }
  return "";
}

std::string fabric_text(ssize_t code) {
  return fi_strerror(static_cast<int>(code < 0 ? -code : code));
}

bool binds_to_host_address(std::string_view provider) noexcept {
  return provider.starts_with("tcp") || provider.starts_with("net") || provider.starts_with("sockets") ||
         provider.starts_with("udp");
}

Fabric::Fabric(const FabricRequest& request)
    : info_(find(request)), delivery_(choose_delivery(*info_, request.delivery)) {
  fid_fabric* fabric = nullptr;
  if (const int code = fi_fabric(info_->fabric_attr, &fabric, nullptr)) fail("fabric", code);
  fabric_.reset(fabric);
  fid_domain* domain = nullptr;
  if (const int code = fi_domain(fabric, info_.get(), &domain, nullptr)) fail("domain", code);
  domain_.reset(domain);

  fi_av_attr table{};
  table.type = FI_AV_TABLE;
  fid_av* addresses = nullptr;
  if (const int code = fi_av_open(domain, &table, &addresses, nullptr)) fail("address table", code);
  addresses_.reset(addresses);

  fi_cq_attr events{};
  events.format = FI_CQ_FORMAT_DATA;
  events.wait_obj = FI_WAIT_NONE;
  events.size = info_->tx_attr->size + info_->rx_attr->size;
  fid_cq* queue = nullptr;
  if (const int code = fi_cq_open(domain, &events, &queue, nullptr)) fail("completion queue", code);
  queue_.reset(queue);

  fid_ep* endpoint = nullptr;
  if (const int code = fi_endpoint(domain, info_.get(), &endpoint, nullptr)) fail("endpoint", code);
  endpoint_.reset(endpoint);
  if (const int code = fi_ep_bind(endpoint, &addresses->fid, 0)) fail("address table of the endpoint", code);
  if (const int code = fi_ep_bind(endpoint, &queue->fid, FI_TRANSMIT | FI_RECV)) {
    fail("completion queue of the endpoint", code);
  }
  if (const int code = fi_enable(endpoint)) fail("endpoint's start", code);
}

bool Fabric::writes_in_order() const noexcept {
  return (promised_order(*info_) & (FI_ORDER_WAW | FI_ORDER_RMA_WAW)) != 0 &&
         info_->ep_attr->max_order_waw_size >= static_cast<std::size_t>(max_write_bytes());
}

bool Fabric::messages_in_order() const noexcept {
  return (promised_order(*info_) & FI_ORDER_SAS) != 0;
}

std::int64_t Fabric::max_write_bytes() const noexcept {
  std::size_t most = std::min(info_->ep_attr->max_msg_size, static_cast<std::size_t>(kMostWriteBytes));
  if (delivery_ == Delivery::words) most = std::min(most, info_->ep_attr->max_order_waw_size);
  return static_cast<std::int64_t>(most);
}

std::int64_t Fabric::inject_bytes() const noexcept {
  return static_cast<std::int64_t>(
      std::min<std::size_t>(info_->tx_attr->inject_size, std::numeric_limits<std::int32_t>::max()));
}

std::string Fabric::address() const {
  std::string name(512, '\0');
  std::size_t bytes = name.size();
  if (const int code = fi_getname(&endpoint_->fid, name.data(), &bytes)) fail("endpoint's address", code);
  name.resize(bytes);
  return name;
}

fi_addr_t Fabric::insert(std::string_view address) {
  fi_addr_t entry = FI_ADDR_UNSPEC;
  const int inserted = fi_av_insert(addresses_.get(), address.data(), 1, &entry, 0, nullptr);
  if (inserted != 1) fail("entry in the address table", inserted < 0 ? inserted : -FI_EINVAL);
  return entry;
}

void Fabric::remove(fi_addr_t address) noexcept {
  fi_av_remove(addresses_.get(), &address, 1, 0);
}

Handle<fid_mr> Fabric::register_memory(std::byte* base, std::int64_t bytes, std::uint64_t access) {
  if (bytes == 0) return nullptr;
  // Never used twice: a put that a peer still makes to a key of before must not reach memory of now.
  const std::uint64_t key = has_mode(FI_MR_PROV_KEY) ? 0 : next_key_++;
  fid_mr* memory = nullptr;
  if (const int code = fi_mr_reg(domain_.get(), base, static_cast<std::size_t>(bytes), access, 0, key, 0,
                                 &memory, nullptr)) {
    throw Error(code == -FI_ENOMEM ? Errc::out_of_memory : Errc::unavailable,
                fmt::format("libfabric: provider {}: registration of {} bytes: {}{}", provider(), bytes,
                            fabric_text(code),
                            code == -FI_ENOMEM ? " (limits: ulimit -l, registrations of the device)" : ""));
  }
  Handle<fid_mr> handle(memory);
  if (has_mode(FI_MR_ENDPOINT)) {
    if (const int code = fi_mr_bind(memory, &endpoint_->fid, 0)) fail("memory of the endpoint", code);
    if (const int code = fi_mr_enable(memory)) fail("memory's start", code);
  }
  return handle;
}

void Fabric::fail(const char* what, ssize_t code) const {
  throw Error(Errc::unavailable, fmt::format("libfabric: provider {}, domain {}: {}: {}", provider(),
                                             domain_name(), what, fabric_text(code)));
}

std::string list_providers() {
  return ask_in_child(
             [] {
               std::string names;
               std::vector<std::string> seen;
               const Info offers = query({}, {}, FI_ORDER_NONE);
               for (const fi_info* offer = offers.get(); offer != nullptr; offer = offer->next) {
                 const std::string name = offer->fabric_attr->prov_name;
                 if (std::find(seen.begin(), seen.end(), name) != seen.end()) continue;
                 seen.push_back(name);
                 names += (names.empty() ? "" : ", ") + name;
               }
               return names;
             },
             kProviderTime)
      .value_or("");
}

}  // namespace shunt::ofi
