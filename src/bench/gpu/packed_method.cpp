#include <algorithm>
#include <string>
#include <string_view>
#include <vector>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <shunt/core/error.h>

#include "method.h"

namespace shunt::bench {
namespace {

std::size_t at(std::int64_t i) {
  return static_cast<std::size_t>(i);
}

/// Bytes at the place where packing is done and at the place that is sent from; the same where both are the device.
struct Pair {
  std::byte* work = nullptr;
  std::byte* wire = nullptr;
};

/// Rows leave sorted by expert, so that those of one owner lie together, each with its expert's id beside it; the owner
/// sorts what came, source by source, by id again. Results go the same way back.
class GpuPackedMethod final : public GpuMethod {
 public:
  GpuPackedMethod(const MethodContext& context, GpuRanks& ranks, const std::shared_ptr<GpuRank>& rank,
                  const GpuTerms& terms, const PackedWay& way)
      : GpuMethod(context, rank, terms, way.padded && !way.on_cpu),
        way_(way),
        exchange_(ranks.exchange(context, *rank, way.carrier)),
        cpu_(way.on_cpu ? make_cpu_pack_device() : nullptr),
        work_(way.on_cpu ? *cpu_ : *device_),
        experts_(point().num_experts),
        first_(workload_.partition().first(id_)),
        local_(workload_.partition().count(id_)),
        selections_(routing_.num_tokens * point().top_k),
        slots_(point().tokens),
        send_slots_(way.padded ? experts_ * slots_ : selections_),
        receive_slots_(way.padded ? std::int64_t{ranks_} * local_ * slots_ : workload_.arriving_rows(id_)) {
    const std::int64_t most = receive_slots_;
    work_tokens_ = pair(tokens_, routing_.num_tokens * workload_.row_bytes());
    work_scales_ =
        pair(reinterpret_cast<std::byte*>(token_scales_), routing_.num_tokens * workload_.scale_bytes());
    work_out_ = pair(out_, routing_.num_tokens * workload_.out_row_bytes());
    work_ids_ = pair(reinterpret_cast<std::byte*>(expert_ids_), selections_ * 4);
    work_weights_ = pair(reinterpret_cast<std::byte*>(weights_), selections_ * 4);
    if (way.on_cpu && selections_ > 0) {
      // Ids and weights come from the router, and the CPU that packs has them.
      work_.write(work_ids_.work, routing_.ids.data(), selections_ * 4);
      work_.write(work_weights_.work, routing_.weights.data(), selections_ * 4);
    }
    send_rows_ = moved(send_slots_ * workload_.row_bytes());
    send_scales_ = moved(send_slots_ * workload_.scale_bytes());
    send_ids_ = moved(send_slots_ * 4);
    receive_rows_ = moved(receive_slots_ * workload_.row_bytes());
    receive_scales_ = moved(receive_slots_ * workload_.scale_bytes());
    receive_ids_ = moved(receive_slots_ * 4);
    rows_ = pair(nullptr, most * workload_.row_bytes());
    row_scales_ = pair(nullptr, most * workload_.scale_bytes());
    outputs_ = pair(nullptr, most * workload_.out_row_bytes());
    back_ = moved(receive_slots_ * workload_.out_row_bytes());
    results_ = moved(send_slots_ * workload_.out_row_bytes());
    send_input_ = {.selections = {.ids = work_ids_.work,
                                  .wide = false,
                                  .num_tokens = routing_.num_tokens,
                                  .top_k = point().top_k,
                                  .live_tokens = nullptr},
                   .num_experts = experts_,
                   .rows_per_expert = way.padded ? slots_ : 0,
                   .alignment = 1,
                   .max_rows = send_slots_};
    send_plan_ = plan(send_input_);
    receive_input_ = {.selections = {.ids = receive_ids_.work,
                                     .wide = false,
                                     .num_tokens = receive_slots_,
                                     .top_k = 1,
                                     .live_tokens = nullptr},
                      .num_experts = experts_,
                      .rows_per_expert = 0,
                      .alignment = 1,
                      .max_rows = most};
    receive_plan_ = plan(receive_input_);
    starts_ = pair(nullptr, (experts_ + 1) * 4);
    counts_ = pair(nullptr, experts_ * 4);
    receive_plan_.starts = reinterpret_cast<std::int32_t*>(starts_.work);
    receive_plan_.counts = reinterpret_cast<std::int32_t*>(counts_.work);
    workspace_ = work_.allocate(
        std::max(cuda::plan_workspace_bytes(send_input_), cuda::plan_workspace_bytes(receive_input_)));
    send_starts_ = moved((experts_ + 1) * 4);
    all_starts_ = reinterpret_cast<std::int32_t*>(moved(std::int64_t{ranks_} * (experts_ + 1) * 4).wire);
    host_starts_.assign(at(std::int64_t{ranks_} * (experts_ + 1)), 0);
    from_.assign(at(ranks_) + 1, 0);
    for (std::int32_t r = 0; way_.padded && r < ranks_; ++r) {
      for (std::int32_t e = 0; e <= experts_; ++e)
        host_starts_[at(r * std::int64_t{experts_ + 1} + e)] = static_cast<std::int32_t>(e * slots_);
      from_[at(r) + 1] = (r + 1) * local_ * slots_;
    }
  }

  void start_dispatch() override {
    from_device(work_tokens_, routing_.num_tokens * workload_.row_bytes());
    from_device(work_scales_, routing_.num_tokens * workload_.scale_bytes());
    work_.make_plan(send_input_, send_plan_, workspace_);
    if (way_.padded) work_.fill(send_ids_.work, 0xff, send_slots_ * 4);
    cuda::Gather gather;
    gather.from = in_rows(work_tokens_.work);
    gather.positions = send_plan_.positions;
    gather.num_tokens = routing_.num_tokens;
    gather.top_k = point().top_k;
    gather.hidden = point().hidden;
    gather.to = in_rows(send_rows_.work);
    gather.scales = scales(send_scales_.work);
    gather.from_scales = scales(work_scales_.work);
    work_.gather(gather);
    // An id is a row of one element to the kernel.
    cuda::Gather ids;
    ids.from = {work_ids_.work, DType::f32, 4};
    ids.positions = send_plan_.positions;
    ids.num_tokens = selections_;
    ids.hidden = 1;
    ids.to = {send_ids_.work, DType::f32, 4};
    work_.gather(ids);
    mark(Inner::pack);
  }

  void finish_dispatch() override {
    if (!way_.padded) exchange_counts();
    const std::int64_t sent = sent_rows();
    to_device(send_rows_, sent * workload_.row_bytes());
    to_device(send_scales_, sent * workload_.scale_bytes());
    to_device(send_ids_, sent * 4);
    move_rows();
    const std::int64_t came = from_.back();
    from_device(receive_rows_, came * workload_.row_bytes());
    from_device(receive_scales_, came * workload_.scale_bytes());
    from_device(receive_ids_, came * 4);
    mark(Inner::exchange);
    receive_input_.selections.num_tokens = came;
    work_.make_plan(receive_input_, receive_plan_, workspace_);
    cuda::Scatter scatter;
    scatter.from = in_rows(receive_rows_.work);
    scatter.destinations = receive_plan_.positions;
    scatter.num_rows = came;
    scatter.hidden = point().hidden;
    scatter.to = in_rows(rows_.work);
    scatter.from_scales = scales(receive_scales_.work);
    scatter.to_scales = scales(row_scales_.work);
    work_.scatter(scatter);
    to_device(rows_, workload_.arriving_rows(id_) * workload_.row_bytes());
    to_device(row_scales_, workload_.arriving_rows(id_) * workload_.scale_bytes());
    to_device(starts_, (experts_ + 1) * 4);
    to_device(counts_, experts_ * 4);
    mark(Inner::unpack);
  }

  void start_combine() override {
    from_device(outputs_, workload_.arriving_rows(id_) * workload_.out_row_bytes());
    cuda::Scatter scatter;
    scatter.from = out_rows(outputs_.work);
    scatter.destinations = receive_plan_.selections;
    scatter.num_rows = workload_.arriving_rows(id_);
    scatter.hidden = point().hidden;
    scatter.to = out_rows(back_.work);
    work_.scatter(scatter);
    to_device(back_, from_.back() * workload_.out_row_bytes());
    mark(Inner::combine_pack);
  }

  void finish_combine() override {
    move_results();
    from_device(results_, sent_rows() * workload_.out_row_bytes());
    mark(Inner::combine_exchange);
    cuda::Combine combine;
    combine.rows = out_rows(results_.work);
    combine.positions = send_plan_.positions;
    combine.weights = reinterpret_cast<const float*>(work_weights_.work);
    combine.num_tokens = routing_.num_tokens;
    combine.top_k = point().top_k;
    combine.hidden = point().hidden;
    combine.out = out_rows(work_out_.work);
    work_.combine(combine);
    to_device(work_out_, routing_.num_tokens * workload_.out_row_bytes());
    mark(Inner::reduce);
  }

  void poison() override {
    device_->fill(receive_rows_.wire, 0xff, receive_slots_ * workload_.row_bytes());
    device_->fill(receive_ids_.wire, 0xff, receive_slots_ * 4);
    device_->fill(back_.wire, 0xff, receive_slots_ * workload_.out_row_bytes());
    device_->fill(results_.wire, 0xff, send_slots_ * workload_.out_row_bytes());
    GpuMethod::poison();
  }

  [[nodiscard]] GpuTouch rows() const override {
    GpuTouch touch;
    touch.rows = in_rows(rows_.wire);
    touch.scales = workload_.num_scales() > 0 ? reinterpret_cast<const float*>(row_scales_.wire) : nullptr;
    touch.num_scales = workload_.num_scales();
    touch.scale_block = kScaleBlock;
    // Experts of lower ranks have no rows here, so that the first one's begin at 0.
    touch.starts = reinterpret_cast<const std::int32_t*>(starts_.wire) + first_;
    touch.counts = reinterpret_cast<const std::int32_t*>(counts_.wire) + first_;
    touch.num_experts = local_;
    touch.first_expert = first_;
    touch.max_rows = workload_.arriving_rows(id_);
    touch.hidden = point().hidden;
    touch.outputs = out_rows(outputs_.wire);
    return touch;
  }

 private:
  /// wire: device memory that is there already; null: new.
  Pair pair(std::byte* wire, std::int64_t bytes) {
    Pair made;
    made.wire = wire != nullptr ? wire : static_cast<std::byte*>(device_->allocate(bytes));
    made.work = way_.on_cpu ? static_cast<std::byte*>(work_.allocate(bytes)) : made.wire;
    return made;
  }
  /// Memory that the exchange moves from or to.
  Pair moved(std::int64_t bytes) { return pair(exchange_.allocate(bytes), bytes); }
  void to_device(const Pair& pair, std::int64_t bytes) {
    if (way_.on_cpu && bytes > 0) device_->write(pair.wire, pair.work, bytes);
  }
  void from_device(const Pair& pair, std::int64_t bytes) {
    if (way_.on_cpu && bytes > 0) device_->read(pair.work, pair.wire, bytes);
  }
  cuda::Plan plan(const cuda::PlanInput& input) {
    const auto numbers = [this](std::int64_t count) {
      return static_cast<std::int32_t*>(work_.allocate(count * 4));
    };
    return {.counts = numbers(experts_),
            .starts = numbers(experts_ + 1),
            .positions = numbers(input.selections.num_tokens * input.selections.top_k),
            .selections = numbers(input.max_rows),
            .status = static_cast<cuda::PlanStatus*>(work_.allocate(sizeof(cuda::PlanStatus)))};
  }

  /// Each source tells all where its rows of every expert start; they then know how many bytes travel, and to where.
  void exchange_counts() {
    work_.copy(send_starts_.work, send_plan_.starts, (experts_ + 1) * 4);
    to_device(send_starts_, (experts_ + 1) * 4);
    sends_.clear();
    receives_.clear();
    const std::int64_t entries = experts_ + 1;
    for (std::int32_t peer = 0; peer < ranks_; ++peer) {
      sends_.push_back({peer, send_starts_.wire, entries * 4, all_starts_ + id_ * entries});
      receives_.push_back({peer, all_starts_ + peer * entries, entries * 4});
    }
    exchange_.exchange(sends_, receives_, *rank_->stream);
    device_->read(host_starts_.data(), all_starts_, static_cast<std::int64_t>(host_starts_.size()) * 4);
    for (std::int32_t source = 0; source < ranks_; ++source)
      from_[at(source) + 1] = from_[at(source)] + rows_of(source, id_);
    if (sent_rows() > send_slots_ || from_.back() != receive_slots_)
      throw Error(Errc::check_failed,
                  fmt::format("rank {} is to send {} rows and to receive {}; the routing says {} and {}", id_,
                              sent_rows(), from_.back(), send_slots_, receive_slots_));
    mark(Inner::count_exchange);
  }

  [[nodiscard]] std::int64_t start(std::int32_t source, std::int32_t expert) const {
    return host_starts_[at(source * std::int64_t{experts_ + 1} + expert)];
  }
  [[nodiscard]] std::int64_t sent_rows() const { return start(id_, experts_); }
  /// Rows of `owner` among those that `source` sends: where they begin, and how many.
  [[nodiscard]] std::int64_t begin_of(std::int32_t source, std::int32_t owner) const {
    return start(source, workload_.partition().first(owner));
  }
  [[nodiscard]] std::int64_t rows_of(std::int32_t source, std::int32_t owner) const {
    const ExpertPartition& partition = workload_.partition();
    return start(source, partition.first(owner) + partition.count(owner)) - begin_of(source, owner);
  }
  /// The first row of this rank among those that `owner` receives.
  [[nodiscard]] std::int64_t landing(std::int32_t owner) const {
    std::int64_t row = 0;
    for (std::int32_t source = 0; source < id_; ++source) row += rows_of(source, owner);
    return row;
  }
  /// Bytes of blocks of rows between any two ranks, padded.
  [[nodiscard]] bool move_blocks(const Pair& send, const Pair& receive, std::int64_t bytes) {
    return way_.padded &&
           exchange_.all_to_all(send.wire, receive.wire, local_ * slots_ * bytes, *rank_->stream);
  }

  void move_rows() {
    sends_.clear();
    receives_.clear();
    const auto add = [&](const Pair& send, const Pair& receive, std::int64_t bytes) {
      if (bytes == 0 || move_blocks(send, receive, bytes)) return;
      for (std::int32_t peer = 0; peer < ranks_; ++peer) {
        sends_.push_back({peer, send.wire + begin_of(id_, peer) * bytes, rows_of(id_, peer) * bytes,
                          receive.wire + landing(peer) * bytes});
        receives_.push_back(
            {peer, receive.wire + from_[at(peer)] * bytes, (from_[at(peer) + 1] - from_[at(peer)]) * bytes});
      }
    };
    add(send_rows_, receive_rows_, workload_.row_bytes());
    add(send_scales_, receive_scales_, workload_.scale_bytes());
    add(send_ids_, receive_ids_, 4);
    if (!sends_.empty()) exchange_.exchange(sends_, receives_, *rank_->stream);
  }

  void move_results() {
    sends_.clear();
    receives_.clear();
    const std::int64_t bytes = workload_.out_row_bytes();
    if (move_blocks(back_, results_, bytes)) return;
    for (std::int32_t peer = 0; peer < ranks_; ++peer) {
      sends_.push_back({peer, back_.wire + from_[at(peer)] * bytes,
                        (from_[at(peer) + 1] - from_[at(peer)]) * bytes,
                        results_.wire + begin_of(peer, id_) * bytes});
      receives_.push_back({peer, results_.wire + begin_of(id_, peer) * bytes, rows_of(id_, peer) * bytes});
    }
    exchange_.exchange(sends_, receives_, *rank_->stream);
  }

  PackedWay way_;
  GpuExchange& exchange_;
  std::unique_ptr<PackDevice> cpu_;
  PackDevice& work_;
  std::int32_t experts_;  ///< E
  std::int32_t first_;    ///< This rank's first expert
  std::int32_t local_;    ///< L of this rank
  std::int64_t selections_;
  std::int64_t slots_;  ///< padded: rows of each (source, expert) block
  std::int64_t send_slots_;
  std::int64_t receive_slots_;
  Pair work_tokens_, work_scales_, work_out_, work_ids_, work_weights_;
  Pair send_rows_, send_scales_, send_ids_;           ///< By expert
  Pair receive_rows_, receive_scales_, receive_ids_;  ///< By source, then expert
  Pair rows_, row_scales_, outputs_;                  ///< By expert, then source
  Pair back_, results_;                               ///< As receive_rows_ and send_rows_
  Pair starts_, counts_, send_starts_;
  std::int32_t* all_starts_ = nullptr;  ///< [R, E + 1] by source
  cuda::PlanInput send_input_, receive_input_;
  cuda::Plan send_plan_, receive_plan_;
  void* workspace_ = nullptr;
  std::vector<std::int32_t> host_starts_;  ///< [R, E + 1] by source
  std::vector<std::int64_t> from_;         ///< [R + 1] first row from each source
  std::vector<SendPiece> sends_;
  std::vector<ReceivePiece> receives_;
};

/// Device memory that GpuPackedMethod allocates on a rank for rows.
std::int64_t packed_bytes(const Workload& workload, const PackedWay& way, std::int32_t rank) {
  const Point& point = workload.point();
  const std::int64_t row = workload.row_bytes() + workload.scale_bytes();
  const std::int64_t out = workload.out_row_bytes();
  const std::int64_t sent =
      way.padded ? std::int64_t{point.num_experts} * point.tokens : point.tokens * point.top_k;
  const std::int64_t received =
      way.padded ? std::int64_t{point.ranks} * workload.partition().count(rank) * point.tokens
                 : workload.arriving_rows(rank);
  return sent * (row + 4 + out) + received * (2 * (row + out) + 4);
}

/// What ranks tell each other before any of them makes a method.
struct Note {
  std::int64_t needed = 0;
  std::int64_t free = 0;     ///< 0: not known
  char device[64] = {};      ///< Whose memory, and on which node
  bool unconnected = false;  ///< It has no exchange
  bool failed = false;
  Errc code = Errc::internal;
  char failure[400] = {};
};

/// Throws what `all` say has gone wrong, the same on every rank.
void check_failures(const std::vector<Note>& all) {
  const Note* cause = nullptr;
  const auto mild = [](const Note& note) {
    return note.code == Errc::unavailable || note.code == Errc::out_of_memory;
  };
  // A method is left out for these two; what ends the run on one rank must end it on all.
  for (const Note& note : all)
    if (note.failed && (cause == nullptr || (mild(*cause) && !mild(note)))) cause = &note;
  if (cause == nullptr) return;
  const std::string name = fmt::format("rank {}: ", cause - all.data());
  const std::string_view text = cause->failure;
  // What every rank has found concerns none of them in particular.
  const bool common = std::all_of(all.begin(), all.end(), [](const Note& note) { return note.failed; });
  throw Error(cause->code, (common || text.starts_with(name) ? "" : name) + std::string(text));
}

/// Throws out_of_memory, the same on every rank, where a device has less than its ranks need together.
void check_memory(const std::vector<Note>& all) {
  for (std::size_t first = 0; first < all.size(); ++first) {
    std::vector<std::size_t> sharers;
    std::int64_t needed = 0;
    std::int64_t free = all[first].free;
    for (std::size_t r = 0; r < all.size(); ++r) {
      if (std::string_view(all[r].device) != all[first].device) continue;
      sharers.push_back(r);
      needed += all[r].needed;
      free = std::min(free, all[r].free);
    }
    if (free == 0 || needed <= free) continue;
    if (sharers.size() == 1)
      throw Error(
          Errc::out_of_memory,
          fmt::format("rank {}: its rows need {} bytes of device memory, {} are free", first, needed, free));
    throw Error(
        Errc::out_of_memory,
        fmt::format("ranks {} share the GPU {}: their rows need {} bytes of its memory together, {} are free",
                    fmt::join(sharers, ", "), all[first].device, needed, free));
  }
}

/// Collective. Connects the ranks by `way`'s exchange and compares what they need with what is free: some allocations are
/// collective, and a rank that fails alone would be waited for. So every rank hears from all before any goes on, whatever
/// has failed so far.
/// Errors: the same on every rank, with no exchange left on any where one has none; timeout and peer_lost as they come,
///         after which ranks cannot tell each other anything.
void prepare(const MethodContext& context, GpuRanks& ranks, GpuRank& rank, const PackedWay& way) {
  const World& world = context.transport.world();
  Note mine;
  mine.needed = packed_bytes(context.workload, way, world.rank);
  mine.unconnected = true;
  try {
    static_cast<void>(ranks.exchange(context, rank, way.carrier));
    mine.unconnected = false;
    const GpuMemory memory = rank.stream->memory();
    mine.free = memory.free;
    fmt::format_to_n(mine.device, sizeof mine.device - 1, "{} of node {}", memory.device, world.node);
  } catch (const Error& error) {
    if (error.code() == Errc::timeout || error.code() == Errc::peer_lost) throw;
    mine.failed = true;
    mine.code = error.code();
    std::string_view(error.what()).copy(mine.failure, sizeof mine.failure - 1);
  }
  std::vector<Note> all(at(world.size));
  const std::unique_ptr<Collectives> together =
      context.transport.make_collectives(sizeof mine, Clock::now() + context.settings.deadline);
  together->allgather(&mine, sizeof mine, all.data(), context.settings.deadline);
  // Where one rank could not make it, all have tried just now, so that no method before this one holds it.
  if (std::any_of(all.begin(), all.end(), [](const Note& note) { return note.unconnected; }))
    GpuRanks::drop(rank, way.carrier);
  check_failures(all);
  check_memory(all);
}

/// The bytes that move, copied from here to here.
class GpuCopyMethod final : public GpuMethod {
 public:
  GpuCopyMethod(const MethodContext& context, std::shared_ptr<GpuRank> rank, const GpuTerms& terms)
      : GpuMethod(context, std::move(rank), terms, true),
        rows_bytes_(workload_.arriving_rows(id_) * (workload_.row_bytes() + workload_.scale_bytes())),
        result_bytes_(workload_.arriving_rows(id_) * workload_.out_row_bytes()),
        bytes_(std::max<std::int64_t>(16, std::max(rows_bytes_, result_bytes_))),
        from_(allocate<std::byte>(bytes_)),
        to_(allocate<std::byte>(bytes_)) {
    device_->fill(from_, 0x5a, bytes_);
  }
  void start_dispatch() override { device_->copy(to_, from_, rows_bytes_); }
  void finish_dispatch() override {}
  void start_combine() override { device_->copy(to_, from_, result_bytes_); }
  void finish_combine() override {}
  [[nodiscard]] GpuTouch rows() const override { return {}; }
  [[nodiscard]] ArrivedRows arrived() const override { return {}; }
  [[nodiscard]] const std::byte* combined() const override { return nullptr; }
  void poison() override {
    device_->fill(to_, 0xff, bytes_);
    rank_->stream->synchronize(deadline_);
  }
  [[nodiscard]] std::string check_own() const override {
    std::vector<std::byte> got(at(rows_bytes_));
    if (!got.empty()) device_->read(got.data(), to_, rows_bytes_);
    const auto wrong =
        std::find_if(got.begin(), got.end(), [](std::byte one) { return one != std::byte{0x5a}; });
    return wrong == got.end()
               ? ""
               : fmt::format("rank {}: byte {} of the copy is not what was copied", id_, wrong - got.begin());
  }

 private:
  std::int64_t rows_bytes_;
  std::int64_t result_bytes_;
  std::int64_t bytes_;
  std::byte* from_;
  std::byte* to_;
};

}  // namespace

std::unique_ptr<Method> make_gpu_packed_method(const MethodContext& context, GpuRanks& ranks,
                                               const GpuTerms& terms, const PackedWay& way) {
  if (context.workload.point().dp_size != 1)
    throw Error(Errc::unavailable,
                fmt::format("it is for --dp-size 1, not {}", context.workload.point().dp_size));
  const Point& point = context.workload.point();
  if (way.padded && way.carrier == Carrier::nvshmem && point.num_experts % point.ranks != 0)
    throw Error(Errc::unavailable,
                fmt::format("its all-to-all has blocks of one size, and {} experts on {} ranks are not",
                            point.num_experts, point.ranks));
  const std::shared_ptr<GpuRank> rank = ranks.find(context);
  prepare(context, ranks, *rank, way);
  return std::make_unique<GpuPackedMethod>(context, ranks, rank, terms, way);
}

std::unique_ptr<Method> make_gpu_copy_method(const MethodContext& context, GpuRanks& ranks,
                                             const GpuTerms& terms) {
  return std::make_unique<GpuCopyMethod>(context, ranks.find(context), terms);
}

}  // namespace shunt::bench
