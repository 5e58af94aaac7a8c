#include "mpi.h"

#include <algorithm>
#include <cstring>

#include <fmt/format.h>

#include <shunt/core/error.h>
#include <shunt/pack/kernels.h>

#include "mpi_exchange.h"
#include "packed.h"

namespace shunt::bench {
namespace {

/// An item of the deduplicating method: [row | scales | n | local expert ids [K] | weights [K], presummed only].
[[nodiscard]] std::int64_t dedup_item_bytes(const Workload& workload, bool presum) {
  const std::int64_t choices = workload.point().top_k * (presum ? 2 : 1);
  return round_up(workload.row_bytes() + workload.scale_bytes() + 4 * (1 + choices), 16);
}

/// Buffers for the largest number of selections that a rank sends or gets, all as items of `item` bytes.
[[nodiscard]] SharedSizes mpi_sizes(const Workload& workload, std::int64_t item) {
  const std::int32_t ranks = workload.point().ranks;
  const std::int64_t result = result_bytes(workload);
  SharedSizes sizes;
  for (std::int32_t rank = 0; rank < ranks; ++rank) {
    std::int64_t sent = 0;
    std::int64_t returned = 0;
    std::int64_t expected = 0;
    for (std::int32_t peer = 0; peer < ranks; ++peer) {
      sent += workload.sent_rows(rank, peer);
      returned += workload.returned_rows(rank, peer);
      expected += workload.returned_rows(peer, rank);
    }
    sizes.pack = std::max({sizes.pack, sent * item, returned * result});
    sizes.receive = std::max({sizes.receive, workload.arriving_rows(rank) * item, expected * result});
  }
  sizes.rows = packed_rows_bytes(workload);
  sizes.outputs = workload.max_arriving_rows() * workload.out_row_bytes();
  return sizes;
}

/// One item for each selection.
class MpiMethod : public PackedMethod {
 public:
  MpiMethod(const MethodContext& context, MpiWay way)
      : PackedMethod(context, pack_kernels()), exchange_(way, deadline_) {}

 protected:
  bool exchange_counts() override {
    exchange_.counts(send_items_.data(), arrive_items_.data());
    return true;
  }

  void prepare(bool results) override {
    if (results)
      exchange_.plan(true, return_items_, expect_items_, result_bytes(workload_));
    else
      exchange_.plan(false, send_items_, arrive_items_, item_bytes(workload_));
  }

  std::byte* outgoing(std::int32_t peer, bool results) final {
    return memory_.pack.data() + exchange_.send_offset(results, peer);
  }

  void exchange(bool results) final {
    exchange_.exchange(results, memory_.pack.data(), memory_.receive.data());
  }

  Piece incoming(std::int32_t peer, bool results) override {
    const auto p = static_cast<std::size_t>(peer);
    return {memory_.receive.data() + exchange_.receive_offset(results, peer),
            results ? expect_items_[p] : arrive_items_[p]};
  }

  MpiExchange exchange_;
};

/// One item for each token and rank. Results come back one for each selection, or (presum) as one weighted sum
/// for each token and rank, rounded there: other bits than one sum in k order, though within the same bound
/// where rows and results are of one type.
class MpiDedupMethod final : public MpiMethod {
 public:
  MpiDedupMethod(const MethodContext& context, MpiWay way, bool presum)
      : MpiMethod(context, way),
        presum_(presum),
        row_and_scales_(workload_.row_bytes() + workload_.scale_bytes()),
        item_(dedup_item_bytes(workload_, presum)),
        ones_(static_cast<std::size_t>(workload_.point().top_k), 1.0F) {
    const auto ranks = static_cast<std::size_t>(ranks_);
    for (auto* counts : {&send_tokens_, &arrive_tokens_, &return_tokens_, &expect_tokens_, &last_token_})
      counts->assign(ranks, 0);
    choices_.assign(ranks, nullptr);
  }

  void combine() override {
    if (!presum_) {
      PackedMethod::combine();
      return;
    }
    auto now = Clock::now();
    plan_sums();
    pack_sums();
    now = mark(Inner::combine_pack, now);
    exchange(true);
    now = mark(Inner::combine_exchange, now);
    add_sums();
    mark(Inner::reduce, now);
  }

 private:
  /// Calls visit(token, k, owner, first) for each selection of tokens [begin, end); `first`: of its token and owner.
  template <class Visit>
  void each_selection(std::int64_t begin, std::int64_t end, const Visit& visit) {
    const Routing& routing = workload_.routing(workload_.group_of(rank_));
    std::fill(last_token_.begin(), last_token_.end(), -1);
    for (std::int64_t t = begin; t < end; ++t)
      for (std::int32_t k = 0; k < routing.top_k; ++k) {
        const std::int32_t expert = routing.ids[static_cast<std::size_t>(t * routing.top_k + k)];
        if (expert < 0) continue;
        const std::int32_t owner = workload_.partition().owner(expert);
        std::int64_t& last = last_token_[static_cast<std::size_t>(owner)];
        visit(t, k, owner, last != t);
        last = t;
      }
  }

  bool exchange_counts() override {
    const TokenShare share = workload_.share(rank_);
    std::fill(send_tokens_.begin(), send_tokens_.end(), 0);
    each_selection(share.begin, share.end, [&](std::int64_t, std::int32_t, std::int32_t owner, bool first) {
      if (first) ++send_tokens_[static_cast<std::size_t>(owner)];
    });
    exchange_.counts(send_tokens_.data(), arrive_tokens_.data());
    return true;
  }

  void prepare(bool results) override {
    if (results)
      MpiMethod::prepare(true);
    else
      exchange_.plan(false, send_tokens_, arrive_tokens_, item_);
  }

  void pack() override {
    const std::int32_t group = workload_.group_of(rank_);
    const Routing& routing = workload_.routing(group);
    const TokenShare share = workload_.share(rank_);
    prepare(false);
    for (std::int32_t peer = 0; peer < ranks_; ++peer)
      to_[static_cast<std::size_t>(peer)] = outgoing(peer, false);
    each_selection(
        share.begin, share.end, [&](std::int64_t t, std::int32_t k, std::int32_t owner, bool first) {
          const auto p = static_cast<std::size_t>(owner);
          if (first) {
            std::byte* const to = to_[p];
            kernels_.copy(to, memory_.private_tokens() + t * workload_.row_bytes(), workload_.row_bytes());
            if (workload_.scale_bytes() > 0)
              std::memcpy(to + workload_.row_bytes(), workload_.token_scales(group, t),
                          static_cast<std::size_t>(workload_.scale_bytes()));
            choices_[p] = reinterpret_cast<std::int32_t*>(to + row_and_scales_);
            *choices_[p] = 0;
            to_[p] += item_;
          }
          const auto at = static_cast<std::size_t>(t * routing.top_k + k);
          const std::int32_t n = (*choices_[p])++;
          choices_[p][1 + n] = routing.ids[at] - workload_.partition().first(owner);
          if (presum_) std::memcpy(&choices_[p][1 + routing.top_k + n], &routing.weights[at], sizeof(float));
        });
  }

  /// n, local experts and weights of an item. Errors: Errc::check_failed for a number that no token has.
  [[nodiscard]] const std::int32_t* choices_of(const std::byte* item) const {
    const auto* found = reinterpret_cast<const std::int32_t*>(item + row_and_scales_);
    if (*found < 1 || *found > workload_.point().top_k)
      throw Error(Errc::check_failed, fmt::format("rank {} got a token with {} of {} experts", rank_, *found,
                                                  workload_.point().top_k));
    return found;
  }

  [[nodiscard]] const std::byte* arrived_from(std::int32_t source) const {
    return memory_.receive.data() + exchange_.receive_offset(false, source);
  }

  void unpack() override {
    const std::int64_t row_bytes = workload_.row_bytes();
    const std::int64_t scale_bytes = workload_.scale_bytes();
    std::fill(cursor_.begin(), cursor_.end(), 0);
    for (std::int32_t source = 0; source < ranks_; ++source) {
      const auto s = static_cast<std::size_t>(source);
      std::int64_t selections = 0;
      for (std::int64_t i = 0; i < arrive_tokens_[s]; ++i) {
        const std::int32_t* choices = choices_of(arrived_from(source) + i * item_);
        for (std::int32_t n = 0; n < choices[0]; ++n) ++cursor_[checked_local_expert(choices[1 + n])];
        selections += choices[0];
      }
      if (selections != static_cast<std::int64_t>(slot_[s].size()))
        throw Error(Errc::check_failed,
                    fmt::format("rank {} got {} selections from rank {}; the routing says {}", rank_,
                                selections, source, slot_[s].size()));
      arrive_items_[s] = selections;
    }
    place_rows();
    std::byte* const scales = scale_base();
    for (std::int32_t source = 0; source < ranks_; ++source) {
      const auto s = static_cast<std::size_t>(source);
      std::size_t selection = 0;
      for (std::int64_t i = 0; i < arrive_tokens_[s]; ++i) {
        const std::byte* from = arrived_from(source) + i * item_;
        const std::int32_t* choices = choices_of(from);
        for (std::int32_t n = 0; n < choices[0]; ++n) {
          const std::int64_t row = cursor_[checked_local_expert(choices[1 + n])]++;
          slot_[s][selection++] = row;
          kernels_.copy(memory_.rows.data() + row * row_bytes, from, row_bytes);
          if (scale_bytes > 0)
            std::memcpy(scales + row * scale_bytes, from + row_bytes, static_cast<std::size_t>(scale_bytes));
        }
      }
    }
  }

  void plan_sums() {
    const std::int32_t dp_size = workload_.point().dp_size;
    const Routing& routing = workload_.routing(workload_.group_of(rank_));
    std::fill(expect_tokens_.begin(), expect_tokens_.end(), 0);
    each_selection(0, routing.num_tokens, [&](std::int64_t, std::int32_t, std::int32_t owner, bool first) {
      if (first) ++expect_tokens_[static_cast<std::size_t>(owner)];
    });
    for (std::int32_t peer = 0; peer < ranks_; ++peer) {
      const std::int32_t first = workload_.group_of(peer) * dp_size;
      std::int64_t tokens = 0;
      for (std::int32_t member = first; member < first + dp_size; ++member)
        tokens += arrive_tokens_[static_cast<std::size_t>(member)];
      return_tokens_[static_cast<std::size_t>(peer)] = tokens;
    }
    exchange_.plan(true, return_tokens_, expect_tokens_, result_bytes(workload_));
  }

  void pack_sums() {
    const Point& point = workload_.point();
    WeightedSum sum{.rows = sum_rows_.data(),
                    .hidden = point.hidden,
                    .row_dtype = point.out_dtype,
                    .out_dtype = point.out_dtype};
    for (std::int32_t peer = 0; peer < ranks_; ++peer) {
      const std::int32_t first = workload_.group_of(peer) * point.dp_size;
      std::byte* to = outgoing(peer, true);
      if (peer != first) {  // The whole group gets the same.
        std::memcpy(to, outgoing(first, true),
                    static_cast<std::size_t>(return_tokens_[static_cast<std::size_t>(peer)] *
                                             result_bytes(workload_)));
        continue;
      }
      for (std::int32_t member = first; member < first + point.dp_size; ++member) {
        const auto m = static_cast<std::size_t>(member);
        std::size_t selection = 0;
        for (std::int64_t i = 0; i < arrive_tokens_[m]; ++i, to += result_bytes(workload_)) {
          const std::int32_t* choices = choices_of(arrived_from(member) + i * item_);
          for (std::int32_t n = 0; n < choices[0]; ++n)
            sum_rows_[static_cast<std::size_t>(n)] =
                memory_.outputs.data() + slot_[m][selection++] * workload_.out_row_bytes();
          sum.num_rows = choices[0];
          sum.weights = reinterpret_cast<const float*>(choices + 1 + point.top_k);
          sum.out = to;
          kernels_.weighted_sum(sum);
        }
      }
    }
  }

  void add_sums() {
    const Point& point = workload_.point();
    const Routing& routing = workload_.routing(workload_.group_of(rank_));
    for (std::int32_t peer = 0; peer < ranks_; ++peer)
      from_[static_cast<std::size_t>(peer)] = memory_.receive.data() + exchange_.receive_offset(true, peer);
    WeightedSum sum{.rows = sum_rows_.data(),
                    .weights = ones_.data(),
                    .hidden = point.hidden,
                    .row_dtype = point.out_dtype,
                    .out_dtype = point.out_dtype};
    for (std::int64_t t = 0; t < routing.num_tokens; ++t) {
      sum.num_rows = 0;
      each_selection(t, t + 1, [&](std::int64_t, std::int32_t, std::int32_t owner, bool first) {
        if (!first) return;
        const std::byte*& from = from_[static_cast<std::size_t>(owner)];
        sum_rows_[static_cast<std::size_t>(sum.num_rows++)] = from;
        from += result_bytes(workload_);
      });
      sum.out = memory_.combined.data() + t * workload_.out_row_bytes();
      kernels_.weighted_sum(sum);
    }
  }

  bool presum_;
  std::int64_t row_and_scales_;
  std::int64_t item_;
  std::vector<float> ones_;                                                                ///< [K]
  std::vector<std::int64_t> send_tokens_, arrive_tokens_, return_tokens_, expect_tokens_;  ///< [R]
  std::vector<std::int64_t> last_token_;                                                   ///< [R]
  std::vector<std::int32_t*> choices_;  ///< [R] of the item being written
};

[[nodiscard]] MethodSpec mpi_method(const char* variant, MpiWay way) {
  MethodSpec spec{.name = "simd/mpi", .variant = variant};
  spec.summary = "vector pack, MPI_Alltoall of counts, MPI_Alltoallv of rows, vector unpack";
  spec.unsuited = [way](const Transport& transport) -> std::string {
    return MpiExchange::unsuited(way, transport.world().rank, transport.world().size);
  };
  spec.shared_sizes = [](const Workload& workload) { return mpi_sizes(workload, item_bytes(workload)); };
  spec.make = [way](const MethodContext& context) { return std::make_unique<MpiMethod>(context, way); };
  return spec;
}

[[nodiscard]] MethodSpec dedup_method(const char* variant, MpiWay way, bool presum) {
  MethodSpec spec = mpi_method(variant, way);
  spec.name = "simd/mpi-dedup";
  spec.summary =
      "MPI with one row per token and rank, its experts beside it; results return one for each expert, or "
      "summed for each "
      "rank (variants with sum: other rounding)";
  spec.shared_sizes = [presum](const Workload& workload) {
    return mpi_sizes(workload, dedup_item_bytes(workload, presum));
  };
  spec.make = [way, presum](const MethodContext& context) -> std::unique_ptr<Method> {
    const Point& point = context.workload.point();
    if (presum && point.in_dtype != point.out_dtype)
      throw Error(Errc::unavailable,
                  "sums of rounded sums leave the bound of the check where rows are quantised");
    return std::make_unique<MpiDedupMethod>(context, way, presum);
  };
  return spec;
}

}  // namespace

std::vector<MethodSpec> mpi_methods() {
  return {mpi_method("alltoallv", MpiWay::alltoallv),
          mpi_method("persistent", MpiWay::persistent),
          mpi_method("pairwise", MpiWay::pairwise),
          dedup_method("rows", MpiWay::alltoallv, false),
          dedup_method("rows_persistent", MpiWay::persistent, false),
          dedup_method("rows_pairwise", MpiWay::pairwise, false),
          dedup_method("sum", MpiWay::alltoallv, true),
          dedup_method("sum_persistent", MpiWay::persistent, true),
          dedup_method("sum_pairwise", MpiWay::pairwise, true)};
}

}  // namespace shunt::bench
