#include "floors.h"

#include <algorithm>
#include <cstring>

#include <fmt/format.h>

#include <shunt/pack/kernels.h>

#include "packed.h"

namespace shunt::bench {
namespace {

/// The signals of other methods lie at the start of the shared region and must never shrink.
std::int64_t first_free_byte(std::int32_t ranks) {
  return 2 * ranks * kSignalStride;
}

class XcopyMethod final : public Method {
 public:
  XcopyMethod(const MethodContext& context, CopyWay way)
      : workload_(context.workload),
        memory_(context.memory),
        transport_(context.transport),
        rank_(context.transport.world().rank),
        ranks_(context.transport.world().size),
        push_(way == CopyWay::push || way == CopyWay::push_streaming),
        copy_(way == CopyWay::push || way == CopyWay::pull ? pack_kernels().copy
                                                           : pack_kernels().copy_streaming),
        payload_(workload_.row_bytes() + workload_.scale_bytes()) {}

  void dispatch() override {
    for (std::int32_t step = 0; step < ranks_; ++step) {
      const std::int32_t peer = (rank_ + step) % ranks_;
      if (push_)
        copy_piece(
            rank_,
            transport_.peer_pointer(memory_.region, peer) + first_free_byte(ranks_) + offset(rank_, peer),
            memory_.symmetric_tokens.local, workload_.sent_rows(rank_, peer));
      else
        copy_piece(peer, memory_.rows.data() + offset(peer, rank_),
                   transport_.peer_pointer(memory_.symmetric_tokens, peer), workload_.sent_rows(peer, rank_));
    }
    store_fence();
  }

  void touch() override {
    const Point& point = workload_.point();
    ScaledCopy copy{.hidden = point.hidden,
                    .from_dtype = point.in_dtype,
                    .block = kScaleBlock,
                    .to_dtype = point.out_dtype};
    // Piece bytes have no row structure to find scales in; any token's scales cost the same to apply.
    if (workload_.num_scales() > 0) {
      copy.from_scale = ScaleType::f32;
      copy.from_scales = workload_.token_scales(workload_.group_of(rank_), 0);
    }
    const std::byte* from = destination();
    for (std::int64_t row = 0; row < workload_.arriving_rows(rank_); ++row) {
      copy.from = from + row * payload_;
      copy.to = memory_.outputs.data() + row * workload_.out_row_bytes();
      pack_kernels().scaled_copy(copy);
    }
  }

  void combine() override {}
  [[nodiscard]] ArrivedRows arrived() const override { return {}; }
  [[nodiscard]] const std::byte* combined() const override { return nullptr; }

  void poison() override {
    if (push_)
      std::memset(memory_.region.local + first_free_byte(ranks_), 0xff,
                  static_cast<std::size_t>(workload_.arriving_rows(rank_) * payload_));
    else
      std::memset(memory_.rows.data(), 0xff, static_cast<std::size_t>(memory_.rows.bytes()));
  }

  [[nodiscard]] std::span<std::byte> own_tokens() override {
    const TokenShare share = workload_.share(rank_);
    return {memory_.symmetric_tokens.local, static_cast<std::size_t>((share.end - share.begin) * payload_)};
  }

  [[nodiscard]] std::string check_own() const override {
    for (std::int32_t source = 0; source < ranks_; ++source) {
      const std::byte* found = destination() + offset(source, rank_);
      const std::byte* from = transport_.peer_pointer(memory_.symmetric_tokens, source);
      const TokenShare share = workload_.share(source);
      const std::int64_t window = (share.end - share.begin) * payload_;
      const std::int64_t bytes = workload_.sent_rows(source, rank_) * payload_;
      for (std::int64_t done = 0; done < bytes; done += window)
        if (std::memcmp(found + done, from, static_cast<std::size_t>(std::min(window, bytes - done))) != 0)
          return fmt::format("the bytes from rank {} to rank {} differ", source, rank_);
    }
    return {};
  }

 private:
  [[nodiscard]] const std::byte* destination() const {
    return push_ ? memory_.region.local + first_free_byte(ranks_) : memory_.rows.data();
  }

  [[nodiscard]] std::int64_t offset(std::int32_t source, std::int32_t owner) const {
    std::int64_t rows = 0;
    for (std::int32_t s = 0; s < source; ++s) rows += workload_.sent_rows(s, owner);
    return rows * payload_;
  }

  void copy_piece(std::int32_t source, std::byte* to, const std::byte* from, std::int64_t rows) const {
    const TokenShare share = workload_.share(source);
    const std::int64_t window = (share.end - share.begin) * payload_;
    for (std::int64_t left = rows * payload_; left > 0; left -= window, to += window)
      copy_(to, from, std::min(left, window));
  }

  const Workload& workload_;
  SharedMemory& memory_;
  Transport& transport_;
  std::int32_t rank_;
  std::int32_t ranks_;
  bool push_;
  void (*copy_)(void*, const void*, std::int64_t);
  std::int64_t payload_;
};

class ReduceMethod final : public Method {
 public:
  explicit ReduceMethod(const MethodContext& context)
      : workload_(context.workload),
        memory_(context.memory),
        group_(workload_.group_of(context.transport.world().rank)),
        sum_rows_(static_cast<std::size_t>(workload_.point().top_k)) {}

  /// Untimed for this floor: puts the expert results where combine reads them, as other methods share the
  /// memory.
  void dispatch() override {
    const Point& point = workload_.point();
    const Routing& routing = workload_.routing(group_);
    ScaledCopy copy{.hidden = point.hidden,
                    .from_dtype = point.in_dtype,
                    .from_scale = workload_.num_scales() > 0 ? ScaleType::f32 : ScaleType::none,
                    .block = kScaleBlock,
                    .to_dtype = point.out_dtype};
    std::byte* to = memory_.receive.data();
    for (std::int64_t t = 0; t < routing.num_tokens; ++t)
      for (std::int32_t k = 0; k < point.top_k; ++k) {
        const std::int32_t expert = routing.ids[static_cast<std::size_t>(t * point.top_k + k)];
        if (expert < 0) continue;
        copy.from = memory_.private_tokens() + t * workload_.row_bytes();
        copy.from_scales = workload_.token_scales(group_, t);
        copy.to = to;
        copy.factor = expert_factor(expert);
        pack_kernels().scaled_copy(copy);
        to += workload_.out_row_bytes();
      }
  }

  void touch() override {}

  void combine() override {
    const Point& point = workload_.point();
    const Routing& routing = workload_.routing(group_);
    WeightedSum sum{.rows = sum_rows_.data(),
                    .num_rows = point.top_k,
                    .hidden = point.hidden,
                    .row_dtype = point.out_dtype,
                    .out_dtype = point.out_dtype};
    const std::byte* from = memory_.receive.data();
    for (std::int64_t t = 0; t < routing.num_tokens; ++t) {
      for (std::int32_t k = 0; k < point.top_k; ++k) {
        const bool chosen = routing.ids[static_cast<std::size_t>(t * point.top_k + k)] >= 0;
        sum_rows_[static_cast<std::size_t>(k)] = chosen ? from : nullptr;
        if (chosen) from += workload_.out_row_bytes();
      }
      sum.weights = routing.weights.data() + t * point.top_k;
      sum.out = memory_.combined.data() + t * workload_.out_row_bytes();
      pack_kernels().weighted_sum(sum);
    }
  }

  [[nodiscard]] ArrivedRows arrived() const override { return {}; }
  [[nodiscard]] const std::byte* combined() const override { return memory_.combined.data(); }
  void poison() override {
    for (const PrivateBuffer* buffer : {&memory_.receive, &memory_.combined})
      if (buffer->bytes() > 0) std::memset(buffer->data(), 0xff, static_cast<std::size_t>(buffer->bytes()));
  }

 private:
  const Workload& workload_;
  SharedMemory& memory_;
  std::int32_t group_;
  std::vector<const void*> sum_rows_;
};

}  // namespace

SharedSizes xcopy_sizes(const Workload& workload) {
  SharedSizes sizes;
  const std::int64_t payload = workload.row_bytes() + workload.scale_bytes();
  sizes.tokens = workload.point().tokens * payload;
  sizes.rows = packed_rows_bytes(workload);
  // A node's tokens in equal parts are no more than its busiest rank's rows, but for one each of rounding up.
  sizes.region = first_free_byte(workload.point().ranks) +
                 (workload.max_arriving_rows() + workload.point().ranks) * payload;
  sizes.outputs = workload.max_arriving_rows() * workload.out_row_bytes();
  return sizes;
}

SharedSizes reduce_sizes(const Workload& workload) {
  SharedSizes sizes;
  sizes.receive = workload.point().tokens * workload.point().top_k * workload.out_row_bytes();
  return sizes;
}

std::unique_ptr<Method> make_xcopy_method(const MethodContext& context, CopyWay way) {
  if (way == CopyWay::put || way == CopyWay::put_node)
    return make_put_floor(context, way == CopyWay::put_node);
  return std::make_unique<XcopyMethod>(context, way);
}

std::unique_ptr<Method> make_reduce_method(const MethodContext& context) {
  return std::make_unique<ReduceMethod>(context);
}

}  // namespace shunt::bench
