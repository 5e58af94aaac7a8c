#include "dense.h"

#include <algorithm>
#include <cstring>

#include <shunt/pack/kernels.h>

#include "packed.h"

namespace shunt::bench {
namespace {

/// Blocks [R, Lmax] of `capacity` items; a token names an expert once, so no block can overflow.
struct DenseLayout {
  explicit DenseLayout(const Workload& workload)
      : ranks(workload.point().ranks),
        blocks(workload.partition().max_count()),
        send_capacity((workload.point().tokens + workload.point().dp_size - 1) / workload.point().dp_size),
        return_capacity(workload.point().tokens),
        send_item(round_up(workload.row_bytes() + workload.scale_bytes(), 16)),
        return_item(result_bytes(workload)) {}
  [[nodiscard]] std::int64_t send_peer() const { return blocks * send_capacity * send_item; }
  [[nodiscard]] std::int64_t return_peer() const { return blocks * return_capacity * return_item; }
  std::int64_t ranks, blocks, send_capacity, return_capacity, send_item, return_item;
};

class DenseMethod final : public Method {
 public:
  explicit DenseMethod(const MethodContext& context)
      : workload_(context.workload),
        memory_(context.memory),
        deadline_(context.settings.deadline),
        rank_(context.transport.world().rank),
        kernels_(pack_kernels()),
        layout_(workload_),
        counts_(static_cast<std::size_t>(layout_.ranks * layout_.blocks)),
        arrived_(counts_.size()),
        first_row_(counts_.size()),
        taken_(static_cast<std::size_t>(workload_.point().num_experts)),
        starts_(static_cast<std::size_t>(workload_.partition().count(rank_)) + 1),
        sum_rows_(static_cast<std::size_t>(workload_.point().top_k)),
        offsets_(static_cast<std::size_t>(layout_.ranks)),
        bytes_(static_cast<std::size_t>(layout_.ranks)) {}

  void dispatch() override {
    auto now = Clock::now();
    const Routing& routing = workload_.routing(workload_.group_of(rank_));
    const TokenShare share = workload_.share(rank_);
    const ExpertPartition& partition = workload_.partition();
    std::fill(counts_.begin(), counts_.end(), 0);
    for (std::int64_t i = share.begin * routing.top_k; i < share.end * routing.top_k; ++i)
      if (const std::int32_t expert = routing.ids[static_cast<std::size_t>(i)]; expert >= 0)
        ++counts_[block(expert)];
    now = mark(Inner::route, now);
    memory_.collectives->alltoall(counts_.data(), layout_.blocks * 8, arrived_.data(), deadline_);
    now = mark(Inner::count_exchange, now);

    std::byte* const out = memory_.collectives->send_buffer();
    std::fill(taken_.begin(), taken_.end(), 0);
    for (std::int64_t t = share.begin; t < share.end; ++t)
      for (std::int32_t k = 0; k < routing.top_k; ++k) {
        const std::int32_t expert = routing.ids[static_cast<std::size_t>(t * routing.top_k + k)];
        if (expert < 0) continue;
        const std::int32_t owner = partition.owner(expert);
        std::byte* to = out + owner * layout_.send_peer() +
                        ((expert - partition.first(owner)) * layout_.send_capacity +
                         taken_[static_cast<std::size_t>(expert)]++) *
                            layout_.send_item;
        kernels_.copy(to, memory_.private_tokens() + t * workload_.row_bytes(), workload_.row_bytes());
        if (workload_.scale_bytes() > 0)
          std::memcpy(to + workload_.row_bytes(), workload_.token_scales(workload_.group_of(rank_), t),
                      static_cast<std::size_t>(workload_.scale_bytes()));
      }
    now = mark(Inner::pack, now);
    exchange(layout_.send_peer());
    now = mark(Inner::exchange, now);
    unpack();
    mark(Inner::unpack, now);
  }

  void touch() override {
    touch_rows(workload_, rank_, starts_.data(), memory_.rows.data(), scales(), memory_.outputs.data());
  }

  void combine() override {
    auto now = Clock::now();
    const std::int32_t dp_size = workload_.point().dp_size;
    const std::int64_t row_bytes = workload_.out_row_bytes();
    std::byte* const out = memory_.collectives->send_buffer();
    for (std::int64_t peer = 0; peer < layout_.ranks; ++peer)
      for (std::int64_t e = 0; e + 1 < static_cast<std::int64_t>(starts_.size()); ++e) {
        std::byte* to =
            out + peer * layout_.return_peer() + e * layout_.return_capacity * layout_.return_item;
        const std::int64_t first = peer / dp_size * dp_size;
        for (std::int64_t member = first; member < first + dp_size; ++member) {
          const auto at = static_cast<std::size_t>(member * layout_.blocks + e);
          for (std::int64_t i = 0; i < arrived_[at]; ++i, to += layout_.return_item)
            kernels_.copy(to, memory_.outputs.data() + (first_row_[at] + i) * row_bytes, row_bytes);
        }
      }
    now = mark(Inner::combine_pack, now);
    exchange(layout_.return_peer());
    now = mark(Inner::combine_exchange, now);
    reduce();
    mark(Inner::reduce, now);
  }

  [[nodiscard]] ArrivedRows arrived() const override {
    ArrivedRows found;
    for (std::int64_t row = 0; row < starts_.back(); ++row) {
      found.rows.push_back(memory_.rows.data() + row * workload_.row_bytes());
      if (workload_.num_scales() > 0) found.scales.push_back(scales() + row * workload_.num_scales());
    }
    return found;
  }
  [[nodiscard]] const std::byte* combined() const override { return memory_.combined.data(); }
  [[nodiscard]] std::span<std::byte> own_tokens() override { return memory_.private_token_bytes(); }

  void poison() override {
    for (const PrivateBuffer* buffer : {&memory_.receive, &memory_.rows, &memory_.outputs, &memory_.combined})
      if (buffer->bytes() > 0) std::memset(buffer->data(), 0xff, static_cast<std::size_t>(buffer->bytes()));
  }

 private:
  [[nodiscard]] std::size_t block(std::int32_t expert) const {
    const std::int32_t owner = workload_.partition().owner(expert);
    return static_cast<std::size_t>(owner * layout_.blocks + expert - workload_.partition().first(owner));
  }

  [[nodiscard]] const float* scales() const {
    if (workload_.num_scales() == 0) return nullptr;
    return reinterpret_cast<const float*>(memory_.rows.data() +
                                          round_up(starts_.back() * workload_.row_bytes(), 64));
  }

  void exchange(std::int64_t per_peer) {
    for (std::size_t p = 0; p < offsets_.size(); ++p) {
      offsets_[p] = static_cast<std::int64_t>(p) * per_peer;
      bytes_[p] = per_peer;
    }
    memory_.collectives->alltoallv(memory_.collectives->send_buffer(), offsets_, bytes_,
                                   memory_.receive.data(), offsets_, bytes_, deadline_);
  }

  void unpack() {
    std::int64_t next = 0;
    const auto local = static_cast<std::int64_t>(starts_.size()) - 1;
    for (std::int64_t e = 0; e < local; ++e) {
      starts_[static_cast<std::size_t>(e)] = next;
      for (std::int64_t source = 0; source < layout_.ranks; ++source) {
        const auto at = static_cast<std::size_t>(source * layout_.blocks + e);
        first_row_[at] = next;
        next += arrived_[at];
      }
    }
    starts_.back() = next;
    auto* const scale_rows = reinterpret_cast<std::byte*>(const_cast<float*>(scales()));
    for (std::int64_t e = 0; e < local; ++e)
      for (std::int64_t source = 0; source < layout_.ranks; ++source) {
        const auto at = static_cast<std::size_t>(source * layout_.blocks + e);
        const std::byte* from = memory_.receive.data() + source * layout_.send_peer() +
                                e * layout_.send_capacity * layout_.send_item;
        for (std::int64_t i = 0; i < arrived_[at]; ++i, from += layout_.send_item) {
          const std::int64_t row = first_row_[at] + i;
          kernels_.copy(memory_.rows.data() + row * workload_.row_bytes(), from, workload_.row_bytes());
          if (scale_rows != nullptr)
            std::memcpy(scale_rows + row * workload_.scale_bytes(), from + workload_.row_bytes(),
                        static_cast<std::size_t>(workload_.scale_bytes()));
        }
      }
  }

  void reduce() {
    const Point& point = workload_.point();
    const Routing& routing = workload_.routing(workload_.group_of(rank_));
    const ExpertPartition& partition = workload_.partition();
    std::fill(taken_.begin(), taken_.end(), 0);
    WeightedSum sum{.rows = sum_rows_.data(),
                    .num_rows = point.top_k,
                    .hidden = point.hidden,
                    .row_dtype = point.out_dtype,
                    .out_dtype = point.out_dtype};
    for (std::int64_t t = 0; t < routing.num_tokens; ++t) {
      for (std::int32_t k = 0; k < point.top_k; ++k) {
        const std::int32_t expert = routing.ids[static_cast<std::size_t>(t * point.top_k + k)];
        sum_rows_[static_cast<std::size_t>(k)] = nullptr;
        if (expert < 0) continue;
        const std::int32_t owner = partition.owner(expert);
        sum_rows_[static_cast<std::size_t>(k)] =
            memory_.receive.data() + owner * layout_.return_peer() +
            ((expert - partition.first(owner)) * layout_.return_capacity +
             taken_[static_cast<std::size_t>(expert)]++) *
                layout_.return_item;
      }
      sum.weights = routing.weights.data() + t * point.top_k;
      sum.out = memory_.combined.data() + t * workload_.out_row_bytes();
      kernels_.weighted_sum(sum);
    }
  }

  const Workload& workload_;
  SharedMemory& memory_;
  std::chrono::milliseconds deadline_;
  std::int32_t rank_;
  const PackKernels& kernels_;
  DenseLayout layout_;
  std::vector<std::int64_t> counts_;           ///< [R, Lmax] sent
  std::vector<std::int64_t> arrived_;          ///< [R, Lmax] received
  std::vector<std::int64_t> first_row_;        ///< [R, Lmax] row of a block's first item
  std::vector<std::int64_t> taken_;            ///< [E]
  std::vector<std::int64_t> starts_;           ///< [L + 1]
  std::vector<const void*> sum_rows_;          ///< [K]
  std::vector<std::int64_t> offsets_, bytes_;  ///< [R]
};

}  // namespace

SharedSizes dense_sizes(const Workload& workload) {
  const DenseLayout layout(workload);
  SharedSizes sizes;
  sizes.collective = std::max({layout.ranks * layout.send_peer(), layout.ranks * layout.return_peer(),
                               layout.ranks * layout.blocks * std::int64_t{8}});
  sizes.receive = sizes.collective;
  sizes.rows = packed_rows_bytes(workload);
  sizes.outputs = workload.max_arriving_rows() * workload.out_row_bytes();
  return sizes;
}

std::int64_t dense_moved_bytes(const Workload& workload) {
  const DenseLayout layout(workload);
  return layout.ranks * layout.ranks * (layout.send_peer() + layout.return_peer());
}

std::int64_t dense_dispatch_bytes(const Workload& workload) {
  const DenseLayout layout(workload);
  return layout.ranks * layout.blocks * layout.send_capacity *
         (workload.row_bytes() + workload.scale_bytes());
}

std::unique_ptr<Method> make_dense_method(const MethodContext& context) {
  return std::make_unique<DenseMethod>(context);
}

}  // namespace shunt::bench
