#include "packed.h"

#include <algorithm>
#include <cstring>

#include <fmt/format.h>

#include <shunt/core/error.h>

namespace shunt::bench {

std::int64_t item_bytes(const Workload& workload) {
  return round_up(workload.row_bytes() + workload.scale_bytes() + 4, 16);
}

std::int64_t packed_rows_bytes(const Workload& workload) {
  return workload.max_arriving_rows() * (workload.row_bytes() + workload.scale_bytes()) + 64;
}

std::int64_t result_bytes(const Workload& workload) {
  return round_up(workload.out_row_bytes(), 16);
}

void touch_rows(const Workload& workload, std::int32_t rank, const std::int64_t* starts,
                const std::byte* rows, const float* scales, std::byte* outputs) {
  const PackKernels& kernels = pack_kernels();
  const Point& point = workload.point();
  const std::int32_t first = workload.partition().first(rank);
  ScaledCopy copy{.hidden = point.hidden,
                  .from_dtype = point.in_dtype,
                  .from_scale = scales == nullptr ? ScaleType::none : ScaleType::f32,
                  .block = kScaleBlock,
                  .to_dtype = point.out_dtype};
  for (std::int32_t e = 0; e < workload.partition().count(rank); ++e) {
    copy.factor = expert_factor(first + e);
    for (std::int64_t row = starts[e]; row < starts[e + 1]; ++row) {
      copy.from = rows + row * workload.row_bytes();
      copy.from_scales = scales == nullptr ? nullptr : scales + row * workload.num_scales();
      copy.to = outputs + row * workload.out_row_bytes();
      kernels.scaled_copy(copy);
    }
  }
}

PackedMethod::PackedMethod(const MethodContext& context, const PackKernels& kernels)
    : kernels_(kernels),
      workload_(context.workload),
      memory_(context.memory),
      transport_(context.transport),
      deadline_(context.settings.deadline),
      rank_(context.transport.world().rank),
      ranks_(context.transport.world().size),
      local_experts_(workload_.partition().count(rank_)) {
  const auto ranks = static_cast<std::size_t>(ranks_);
  for (auto* counts : {&send_items_, &arrive_items_, &return_items_, &expect_items_})
    counts->assign(ranks, 0);
  starts_.assign(static_cast<std::size_t>(local_experts_) + 1, 0);
  cursor_.assign(std::max(static_cast<std::size_t>(local_experts_), ranks), 0);
  to_.assign(ranks, nullptr);
  from_.assign(ranks, nullptr);
  slot_.resize(ranks);
  for (std::int32_t source = 0; source < ranks_; ++source)
    slot_[static_cast<std::size_t>(source)].assign(
        static_cast<std::size_t>(workload_.sent_rows(source, rank_)), 0);
  sum_rows_.assign(static_cast<std::size_t>(workload_.point().top_k), nullptr);
}

std::byte* PackedMethod::scale_base() const {
  return memory_.rows.data() + round_up(num_rows_ * workload_.row_bytes(), 64);
}

void PackedMethod::route() {
  const Routing& routing = workload_.routing(workload_.group_of(rank_));
  const TokenShare share = workload_.share(rank_);
  std::fill(send_items_.begin(), send_items_.end(), 0);
  count_per_rank(routing.ids.data() + share.begin * routing.top_k, (share.end - share.begin) * routing.top_k,
                 workload_.partition(), send_items_.data());
}

void PackedMethod::pack() {
  const Routing& routing = workload_.routing(workload_.group_of(rank_));
  const TokenShare share = workload_.share(rank_);
  const std::int64_t item = item_bytes(workload_);
  const std::int64_t row_bytes = workload_.row_bytes();
  const std::int64_t scale_bytes = workload_.scale_bytes();
  prepare(false);
  for (std::int32_t peer = 0; peer < ranks_; ++peer)
    to_[static_cast<std::size_t>(peer)] = outgoing(peer, false);
  for (std::int64_t t = share.begin; t < share.end; ++t)
    for (std::int32_t k = 0; k < routing.top_k; ++k) {
      const std::int32_t expert = routing.ids[static_cast<std::size_t>(t * routing.top_k + k)];
      if (expert < 0) continue;
      const std::int32_t owner = workload_.partition().owner(expert);
      const std::int32_t local = expert - workload_.partition().first(owner);
      std::byte*& to = to_[static_cast<std::size_t>(owner)];
      kernels_.copy(to, memory_.private_tokens() + t * row_bytes, row_bytes);
      if (scale_bytes > 0)
        std::memcpy(to + row_bytes, workload_.token_scales(workload_.group_of(rank_), t),
                    static_cast<std::size_t>(scale_bytes));
      std::memcpy(to + row_bytes + scale_bytes, &local, sizeof local);
      to += item;
    }
}

std::size_t PackedMethod::checked_local_expert(std::int32_t local) const {
  if (local < 0 || local >= local_experts_)
    throw Error(Errc::check_failed, fmt::format("rank {} got an item for its local expert {}; it has {}",
                                                rank_, local, local_experts_));
  return static_cast<std::size_t>(local);
}

void PackedMethod::place_rows() {
  exclusive_scan(cursor_.data(), local_experts_, starts_.data());
  std::copy_n(starts_.begin(), local_experts_, cursor_.begin());
  num_rows_ = starts_.back();
}

void PackedMethod::unpack() {
  const std::int64_t item = item_bytes(workload_);
  const std::int64_t row_bytes = workload_.row_bytes();
  const std::int64_t scale_bytes = workload_.scale_bytes();
  const auto local_expert = [&](const std::byte* at) {
    std::int32_t local = 0;
    std::memcpy(&local, at + row_bytes + scale_bytes, sizeof local);
    return checked_local_expert(local);
  };
  std::fill(cursor_.begin(), cursor_.end(), 0);
  for (std::int32_t source = 0; source < ranks_; ++source) {
    const Piece piece = incoming(source, false);
    if (piece.items != static_cast<std::int64_t>(slot_[static_cast<std::size_t>(source)].size()))
      throw Error(Errc::check_failed,
                  fmt::format("rank {} got {} items from rank {}; the routing says {}", rank_, piece.items,
                              source, slot_[static_cast<std::size_t>(source)].size()));
    arrive_items_[static_cast<std::size_t>(source)] = piece.items;
    for (std::int64_t i = 0; i < piece.items; ++i) ++cursor_[local_expert(piece.data + i * item)];
  }
  place_rows();
  std::byte* const scales = scale_base();
  for (std::int32_t source = 0; source < ranks_; ++source) {
    const Piece piece = incoming(source, false);
    auto& slots = slot_[static_cast<std::size_t>(source)];
    for (std::int64_t i = 0; i < piece.items; ++i) {
      const std::byte* from = piece.data + i * item;
      const std::int64_t row = cursor_[local_expert(from)]++;
      slots[static_cast<std::size_t>(i)] = row;
      kernels_.copy(memory_.rows.data() + row * row_bytes, from, row_bytes);
      if (scale_bytes > 0)
        std::memcpy(scales + row * scale_bytes, from + row_bytes, static_cast<std::size_t>(scale_bytes));
    }
  }
}

void PackedMethod::dispatch() {
  auto now = Clock::now();
  route();
  now = mark(Inner::route, now);
  if (exchange_counts()) now = mark(Inner::count_exchange, now);
  pack();
  now = mark(Inner::pack, now);
  exchange(false);
  now = mark(Inner::exchange, now);
  unpack();
  mark(Inner::unpack, now);
}

void PackedMethod::touch() {
  const auto* scales = workload_.num_scales() == 0 ? nullptr : reinterpret_cast<const float*>(scale_base());
  touch_rows(workload_, rank_, starts_.data(), memory_.rows.data(), scales, memory_.outputs.data());
}

void PackedMethod::pack_results() {
  const std::int64_t item = result_bytes(workload_);
  const std::int64_t row_bytes = workload_.out_row_bytes();
  const std::int32_t dp_size = workload_.point().dp_size;
  prepare(true);
  for (std::int32_t peer = 0; peer < ranks_; ++peer) {
    const std::int32_t first = workload_.group_of(peer) * dp_size;
    std::byte* to = outgoing(peer, true);
    for (std::int32_t member = first; member < first + dp_size; ++member)
      for (std::int64_t i = 0; i < arrive_items_[static_cast<std::size_t>(member)]; ++i, to += item)
        kernels_.copy(to,
                      memory_.outputs.data() +
                          slot_[static_cast<std::size_t>(member)][static_cast<std::size_t>(i)] * row_bytes,
                      row_bytes);
  }
}

void PackedMethod::reduce() {
  const Point& point = workload_.point();
  const Routing& routing = workload_.routing(workload_.group_of(rank_));
  for (std::int32_t peer = 0; peer < ranks_; ++peer)
    from_[static_cast<std::size_t>(peer)] = incoming(peer, true).data;
  const std::int64_t item = result_bytes(workload_);
  WeightedSum sum{.rows = sum_rows_.data(),
                  .num_rows = point.top_k,
                  .hidden = point.hidden,
                  .row_dtype = point.out_dtype,
                  .out_dtype = point.out_dtype};
  for (std::int64_t t = 0; t < routing.num_tokens; ++t) {
    for (std::int32_t k = 0; k < point.top_k; ++k) {
      const std::int32_t expert = routing.ids[static_cast<std::size_t>(t * point.top_k + k)];
      const std::byte*& from =
          from_[static_cast<std::size_t>(expert < 0 ? 0 : workload_.partition().owner(expert))];
      sum_rows_[static_cast<std::size_t>(k)] = expert < 0 ? nullptr : from;
      if (expert >= 0) from += item;
    }
    sum.weights = routing.weights.data() + t * point.top_k;
    sum.out = memory_.combined.data() + t * workload_.out_row_bytes();
    kernels_.weighted_sum(sum);
  }
}

void PackedMethod::combine() {
  auto now = Clock::now();
  const Routing& routing = workload_.routing(workload_.group_of(rank_));
  const std::int32_t dp_size = workload_.point().dp_size;
  std::fill(expect_items_.begin(), expect_items_.end(), 0);
  count_per_rank(routing.ids.data(), routing.num_tokens * routing.top_k, workload_.partition(),
                 expect_items_.data());
  for (std::int32_t peer = 0; peer < ranks_; ++peer) {
    const std::int32_t first = workload_.group_of(peer) * dp_size;
    std::int64_t items = 0;
    for (std::int32_t member = first; member < first + dp_size; ++member)
      items += arrive_items_[static_cast<std::size_t>(member)];
    return_items_[static_cast<std::size_t>(peer)] = items;
  }
  pack_results();
  now = mark(Inner::combine_pack, now);
  exchange(true);
  now = mark(Inner::combine_exchange, now);
  reduce();
  mark(Inner::reduce, now);
}

ArrivedRows PackedMethod::arrived() const {
  ArrivedRows rows;
  const std::byte* scales = scale_base();
  for (std::int64_t row = 0; row < num_rows_; ++row) {
    rows.rows.push_back(memory_.rows.data() + row * workload_.row_bytes());
    if (workload_.num_scales() > 0)
      rows.scales.push_back(reinterpret_cast<const float*>(scales + row * workload_.scale_bytes()));
  }
  return rows;
}

void PackedMethod::poison() {
  for (const PrivateBuffer* buffer :
       {&memory_.pack, &memory_.receive, &memory_.rows, &memory_.outputs, &memory_.combined})
    if (buffer->bytes() > 0) std::memset(buffer->data(), 0xff, static_cast<std::size_t>(buffer->bytes()));
  // What peers put here or pull from here; the signals of all methods, which only grow, lie in front.
  const std::int64_t signals = 2 * ranks_ * kSignalStride;
  if (memory_.region.bytes > signals)
    std::memset(memory_.region.local + signals, 0xff,
                static_cast<std::size_t>(memory_.region.bytes - signals));
  if (memory_.collectives != nullptr)
    std::memset(memory_.collectives->send_buffer(), 0xff, static_cast<std::size_t>(memory_.sizes.collective));
}

namespace {

/// Items travel by Collectives::alltoallv, packed in place where the collectives' send buffer is used.
class AllToAllVMethod final : public PackedMethod {
 public:
  AllToAllVMethod(const MethodContext& context, const PackKernels& kernels, bool pack_in_place)
      : PackedMethod(context, kernels), in_place_(pack_in_place) {
    const auto ranks = static_cast<std::size_t>(ranks_);
    for (auto* list : {&send_offsets_, &send_bytes_, &receive_offsets_, &receive_bytes_})
      list->assign(ranks, 0);
  }

 private:
  bool exchange_counts() override {
    memory_.collectives->alltoall(send_items_.data(), 8, arrive_items_.data(), deadline_);
    return true;
  }

  std::byte* base() { return in_place_ ? memory_.collectives->send_buffer() : memory_.pack.data(); }

  void prepare(bool results) override {
    const std::int64_t item = results ? result_bytes(workload_) : item_bytes(workload_);
    const auto& out = results ? return_items_ : send_items_;
    const auto& in = results ? expect_items_ : arrive_items_;
    std::int64_t sent = 0;
    std::int64_t received = 0;
    for (std::size_t p = 0; p < out.size(); ++p) {
      send_offsets_[p] = sent;
      receive_offsets_[p] = received;
      sent += send_bytes_[p] = out[p] * item;
      received += receive_bytes_[p] = in[p] * item;
    }
  }

  std::byte* outgoing(std::int32_t peer, bool) override {
    return base() + send_offsets_[static_cast<std::size_t>(peer)];
  }

  void exchange(bool) override {
    memory_.collectives->alltoallv(base(), send_offsets_, send_bytes_, memory_.receive.data(),
                                   receive_offsets_, receive_bytes_, deadline_);
  }

  Piece incoming(std::int32_t peer, bool results) override {
    const auto p = static_cast<std::size_t>(peer);
    return {memory_.receive.data() + receive_offsets_[p], results ? expect_items_[p] : arrive_items_[p]};
  }

  bool in_place_;
  std::vector<std::int64_t> send_offsets_, send_bytes_, receive_offsets_, receive_bytes_;
};

}  // namespace

SharedSizes alltoallv_sizes(const Workload& workload) {
  const std::int32_t ranks = workload.point().ranks;
  SharedSizes sizes;
  std::int64_t most_out = 0;
  std::int64_t most_in = 0;
  for (std::int32_t rank = 0; rank < ranks; ++rank) {
    std::int64_t sent = 0;
    std::int64_t returned = 0;
    std::int64_t expected = 0;
    for (std::int32_t peer = 0; peer < ranks; ++peer) {
      sent += workload.sent_rows(rank, peer);
      returned += workload.returned_rows(rank, peer);
      expected += workload.returned_rows(peer, rank);
    }
    most_out = std::max({most_out, sent * item_bytes(workload), returned * result_bytes(workload)});
    most_in = std::max(
        {most_in, workload.arriving_rows(rank) * item_bytes(workload), expected * result_bytes(workload)});
  }
  sizes.collective = std::max<std::int64_t>(most_out, 8 * ranks);
  sizes.pack = most_out;
  sizes.receive = most_in;
  sizes.rows = packed_rows_bytes(workload);
  sizes.outputs = workload.max_arriving_rows() * workload.out_row_bytes();
  return sizes;
}

std::unique_ptr<Method> make_alltoallv_method(const MethodContext& context, const PackKernels& kernels,
                                              bool pack_in_place) {
  return std::make_unique<AllToAllVMethod>(context, kernels, pack_in_place);
}

}  // namespace shunt::bench
