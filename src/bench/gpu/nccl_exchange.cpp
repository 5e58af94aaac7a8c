#include "nccl_exchange.h"

#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <nccl.h>

#include <cstring>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include <shunt/core/error.h>
#include <shunt/transport/collectives.h>

#include "cuda_check.h"

namespace shunt::bench {
namespace {

/// The library is looked for when a method asks for it, so that the command starts without it.
struct Nccl {
  decltype(&ncclGetUniqueId) get_unique_id = nullptr;
  decltype(&ncclCommInitRank) comm_init_rank = nullptr;
  decltype(&ncclCommDestroy) comm_destroy = nullptr;
  decltype(&ncclCommAbort) comm_abort = nullptr;
  decltype(&ncclGroupStart) group_start = nullptr;
  decltype(&ncclGroupEnd) group_end = nullptr;
  decltype(&ncclSend) send = nullptr;
  decltype(&ncclRecv) recv = nullptr;
  decltype(&ncclGetErrorString) error_string = nullptr;
  std::string missing;

  Nccl() {
    void* const library = dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
      const char* const why = dlerror();
      missing = fmt::format("libnccl.so.2 cannot be loaded: {}", why == nullptr ? "unknown" : why);
      return;
    }
    const auto find = [&](const char* name, auto& function) {
      function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(library, name));
      if (function == nullptr && missing.empty()) missing = fmt::format("libnccl.so.2 has no {}", name);
    };
    find("ncclGetUniqueId", get_unique_id);
    find("ncclCommInitRank", comm_init_rank);
    find("ncclCommDestroy", comm_destroy);
    find("ncclCommAbort", comm_abort);
    find("ncclGroupStart", group_start);
    find("ncclGroupEnd", group_end);
    find("ncclSend", send);
    find("ncclRecv", recv);
    find("ncclGetErrorString", error_string);
  }
};

const Nccl& nccl() {
  static const Nccl library;
  return library;
}

std::string text_of(const char* what, ncclResult_t result) {
  return fmt::format("{}: {}", what, nccl().error_string(result));
}

void require(const char* what, ncclResult_t result) {
  if (result != ncclSuccess) throw Error(Errc::internal, text_of(what, result));
}

/// What ranks tell each other before NCCL is asked: it refuses to serve two ranks on one GPU.
struct Note {
  ncclUniqueId id{};
  char device[64] = {};    ///< Address on the PCI bus, and the machine
  char failure[300] = {};  ///< Why this rank cannot go on
};

class NcclExchange final : public GpuExchange {
 public:
  NcclExchange(const MethodContext& context, const ncclUniqueId& id)
      : ranks_(context.transport.world().size) {
    // NCCL may be there and yet not start (no interface, an old driver): its methods are left out then, and others go on.
    const std::int32_t rank = context.transport.world().rank;
    if (const ncclResult_t made = nccl().comm_init_rank(&comm_, ranks_, id, rank); made != ncclSuccess)
      throw Error(Errc::unavailable, fmt::format("rank {}: {}", rank, text_of("ncclCommInitRank", made)));
  }
  ~NcclExchange() override {
    if (comm_ != nullptr) nccl().comm_destroy(comm_);
  }
  NcclExchange(const NcclExchange&) = delete;
  NcclExchange& operator=(const NcclExchange&) = delete;

  void exchange(std::span<const SendPiece> sends, std::span<const ReceivePiece> receives,
                GpuStream& stream) override {
    if (comm_ == nullptr)
      throw Error(Errc::unavailable, "NCCL's communicator was aborted after an exchange that did not end");
    require("ncclGroupStart", nccl().group_start());
    for (const SendPiece& piece : sends)
      if (piece.bytes > 0)
        require("ncclSend", nccl().send(piece.data, static_cast<std::size_t>(piece.bytes), ncclInt8,
                                        piece.peer, comm_, stream.handle()));
    for (const ReceivePiece& piece : receives)
      if (piece.bytes > 0)
        require("ncclRecv", nccl().recv(piece.data, static_cast<std::size_t>(piece.bytes), ncclInt8,
                                        piece.peer, comm_, stream.handle()));
    require("ncclGroupEnd", nccl().group_end());
  }
  // To destroy it would wait for the peers, and to free device memory for its kernels.
  void abort() noexcept override {
    if (comm_ != nullptr) nccl().comm_abort(std::exchange(comm_, nullptr));
  }

 private:
  int ranks_;
  ncclComm_t comm_ = nullptr;
};

}  // namespace

std::string nccl_unavailable() {
  return nccl().missing;
}

std::unique_ptr<GpuExchange> make_nccl_exchange(const MethodContext& context) {
  const World& world = context.transport.world();
  const std::chrono::milliseconds deadline = context.settings.deadline;
  const std::unique_ptr<Collectives> ranks =
      context.transport.make_collectives(sizeof(Note), Clock::now() + deadline);
  Note mine;
  // A rank that fails here tells the others, which would wait for it.
  try {
    fmt::format_to_n(mine.device, sizeof mine.device - 1, "{} of node {}", gpu_address(), world.node);
    if (world.rank == 0) require("ncclGetUniqueId", nccl().get_unique_id(&mine.id));
  } catch (const Error& error) {
    std::string_view(error.what()).copy(mine.failure, sizeof mine.failure - 1);
  }
  std::vector<Note> all(static_cast<std::size_t>(world.size));
  ranks->allgather(&mine, sizeof mine, all.data(), deadline);
  for (std::size_t rank = 0; rank < all.size(); ++rank)
    if (all[rank].failure[0] != '\0')
      throw Error(Errc::unavailable, fmt::format("rank {}: {}", rank, all[rank].failure));
  for (std::size_t b = 0; b < all.size(); ++b)
    for (std::size_t a = 0; a < b; ++a)
      if (std::strcmp(all[a].device, all[b].device) == 0)
        throw Error(
            Errc::unavailable,
            fmt::format("NCCL refuses several ranks on one GPU, and ranks {} and {} share the one at {}", a,
                        b, all[a].device));
  return std::make_unique<NcclExchange>(context, all[0].id);
}

}  // namespace shunt::bench
