#include "gloo.h"

#include <gloo/alltoall.h>
#include <gloo/alltoallv.h>
#include <gloo/rendezvous/context.h>
#include <gloo/rendezvous/store.h>
#include <gloo/transport/tcp/device.h>
#include <sched.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <utility>

#include <fmt/format.h>

#include <shunt/core/error.h>
#include <shunt/layout/partition.h>
#include <shunt/pack/kernels.h>

#include "packed.h"
#include "peer_network.h"

namespace shunt::bench {
namespace {

constexpr std::int64_t kChunk = kNetworkNoteBytes;

/// The meeting point of gloo's ranks over our collectives: every rank sets as many keys in the same order, though
/// it asks for different ones, so each set is the moment for all to exchange what they set.
class CollectiveStore final : public ::gloo::rendezvous::Store {
 public:
  CollectiveStore(Collectives& collectives, std::int32_t ranks, std::chrono::milliseconds timeout)
      : collectives_(collectives), ranks_(static_cast<std::size_t>(ranks)), timeout_(timeout) {}

  void set(const std::string& key, const std::vector<char>& data) override {
    std::string both;
    for (const std::string& part : {key, std::string(data.begin(), data.end())}) {
      const auto size = static_cast<std::uint32_t>(part.size());
      both.append(reinterpret_cast<const char*>(&size), sizeof size).append(part);
    }
    exchange(std::move(both));
  }
  std::vector<char> get(const std::string& key) override {
    wait({key});
    return known_[key];
  }
  void wait(const std::vector<std::string>& keys) override {
    for (const std::string& key : keys)
      if (!known_.contains(key))
        throw ::gloo::Exception(fmt::format("it asks for \"{}\", which no rank has set", key));
  }
  void wait(const std::vector<std::string>& keys, const std::chrono::milliseconds&) override { wait(keys); }

 private:
  /// `mine`: sizes and bytes of a key and its value.
  void exchange(std::string mine) {
    const auto size = static_cast<std::int64_t>(mine.size());
    std::vector<std::int64_t> sizes(ranks_);
    collectives_.allgather(&size, sizeof size, sizes.data(), timeout_);
    const std::int64_t longest = *std::max_element(sizes.begin(), sizes.end());
    mine.resize(static_cast<std::size_t>(round_up(longest, kChunk)));
    std::vector<std::string> all(ranks_);
    std::vector<char> piece(ranks_ * static_cast<std::size_t>(kChunk));
    for (std::int64_t at = 0; at < longest; at += kChunk) {
      collectives_.allgather(mine.data() + at, kChunk, piece.data(), timeout_);
      for (std::size_t r = 0; r < ranks_; ++r)
        all[r].append(piece.data() + r * static_cast<std::size_t>(kChunk), static_cast<std::size_t>(kChunk));
    }
    for (std::size_t r = 0; r < ranks_; ++r) {
      std::size_t at = 0;
      const auto next = [&all, &at, r]() {
        std::uint32_t bytes = 0;
        std::memcpy(&bytes, all[r].data() + at, sizeof bytes);
        std::string part = all[r].substr(at + sizeof bytes, bytes);
        at += sizeof bytes + bytes;
        return part;
      };
      const std::string key = next();
      const std::string value = next();
      known_[key].assign(value.begin(), value.end());
    }
  }

  Collectives& collectives_;
  std::size_t ranks_;
  std::chrono::milliseconds timeout_;
  std::map<std::string, std::vector<char>> known_;
};

cpu_set_t to_set(const std::vector<int>& cpus) {
  cpu_set_t set;
  CPU_ZERO(&set);
  for (const int cpu : cpus) CPU_SET(static_cast<std::size_t>(cpu), &set);
  return set;
}

/// Lets this thread, and with it the threads that it makes meanwhile, run on other CPUs; where that is refused,
/// it stays.
class OnCpus {
 public:
  explicit OnCpus(const std::vector<int>& cpus) {
    if (cpus.empty() || sched_getaffinity(0, sizeof before_, &before_) != 0) return;
    const cpu_set_t set = to_set(cpus);
    moved_ = sched_setaffinity(0, sizeof set, &set) == 0;
  }
  ~OnCpus() {
    if (moved_) sched_setaffinity(0, sizeof before_, &before_);
  }
  OnCpus(const OnCpus&) = delete;
  OnCpus& operator=(const OnCpus&) = delete;

 private:
  cpu_set_t before_{};
  bool moved_ = false;
};

class GlooMethod final : public PackedMethod {
 public:
  GlooMethod(const MethodContext& context, const std::vector<int>& cpus)
      : PackedMethod(context, pack_kernels()) {
    const PeerNetwork network = find_peer_network(transport_.world(), *memory_.collectives, deadline_);
    const std::string wrong = connect(network, cpus);
    // All ranks go on, or none does.
    char mine[200] = {};
    wrong.copy(mine, sizeof mine - 1);
    std::vector<char> all(static_cast<std::size_t>(ranks_) * sizeof mine);
    memory_.collectives->allgather(mine, sizeof mine, all.data(), deadline_);
    for (std::size_t rank = 0; rank < static_cast<std::size_t>(ranks_); ++rank)
      if (const char* const text = all.data() + rank * sizeof mine; *text != '\0')
        throw Error(Errc::unavailable, fmt::format("rank {}: gloo cannot connect: {}", rank, text));
    const auto ranks = static_cast<std::size_t>(ranks_);
    for (auto* list : {&send_bytes_, &receive_bytes_}) list->assign(ranks, 0);
    for (auto* list : {&send_offsets_, &receive_offsets_}) list->assign(ranks, 0);
  }

 private:
  std::string connect(const PeerNetwork& network, const std::vector<int>& cpus) {
    try {
      ::gloo::transport::tcp::attr attributes;
      attributes.hostname = network.address;
      attributes.ai_family = AF_INET;
      std::shared_ptr<::gloo::transport::Device> device;
      {
        const OnCpus here(cpus);  // its thread begins in here
        device = ::gloo::transport::tcp::CreateDevice(attributes);
      }
      const auto context = std::make_shared<::gloo::rendezvous::Context>(rank_, ranks_);
      context->setTimeout(deadline_);
      CollectiveStore store(*memory_.collectives, ranks_, deadline_);
      context->connectFullMesh(store, device);
      context_ = context;
    } catch (const ::gloo::Exception& error) {
      return error.what();
    }
    return {};
  }

  /// Turns what gloo throws into the house's error; gloo does not say which peer it was.
  template <class Call>
  void guarded(const char* phase, const Call& call) {
    try {
      call();
    } catch (const ::gloo::Exception& error) {
      throw Error(Errc::peer_lost, fmt::format("rank {}, {}: gloo: {}", rank_, phase, error.what()));
    }
  }

  bool exchange_counts() override {
    guarded("count exchange", [&] {
      ::gloo::AlltoallOptions options(context_);
      options.setInput(send_items_.data(), send_items_.size());
      options.setOutput(arrive_items_.data(), arrive_items_.size());
      options.setTimeout(deadline_);
      ::gloo::alltoall(options);
    });
    return true;
  }

  void prepare(bool results) override {
    const std::int64_t item = results ? result_bytes(workload_) : item_bytes(workload_);
    const auto& out = results ? return_items_ : send_items_;
    const auto& in = results ? expect_items_ : arrive_items_;
    std::int64_t sent = 0;
    std::int64_t received = 0;
    for (std::size_t p = 0; p < out.size(); ++p) {
      send_offsets_[p] = std::exchange(sent, sent + out[p] * item);
      receive_offsets_[p] = std::exchange(received, received + in[p] * item);
      send_bytes_[p] = out[p] * item;
      receive_bytes_[p] = in[p] * item;
    }
  }

  std::byte* outgoing(std::int32_t peer, bool) override {
    return memory_.pack.data() + send_offsets_[static_cast<std::size_t>(peer)];
  }

  void exchange(bool results) override {
    guarded(results ? "combine exchange" : "dispatch exchange", [&] {
      ::gloo::AlltoallvOptions options(context_);
      options.setInput(reinterpret_cast<std::uint8_t*>(memory_.pack.data()), send_bytes_);
      options.setOutput(reinterpret_cast<std::uint8_t*>(memory_.receive.data()), receive_bytes_);
      options.setTimeout(deadline_);
      ::gloo::alltoallv(options);
    });
  }

  Piece incoming(std::int32_t peer, bool results) override {
    const auto p = static_cast<std::size_t>(peer);
    return {memory_.receive.data() + receive_offsets_[p], results ? expect_items_[p] : arrive_items_[p]};
  }

  std::shared_ptr<::gloo::Context> context_;
  std::vector<std::int64_t> send_offsets_, receive_offsets_, send_bytes_, receive_bytes_;
};

}  // namespace

SharedSizes gloo_sizes(const Workload& workload) {
  SharedSizes sizes = alltoallv_sizes(workload);
  sizes.collective = kNetworkNoteBytes;
  return sizes;
}

std::vector<int> usable_cpus() {
  std::vector<int> cpus;
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0)
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu)
      if (CPU_ISSET(static_cast<std::size_t>(cpu), &set)) cpus.push_back(cpu);
  return cpus;
}

std::unique_ptr<Method> make_gloo_method(const MethodContext& context, const std::vector<int>& cpus) {
  return std::make_unique<GlooMethod>(context, cpus);
}

}  // namespace shunt::bench
