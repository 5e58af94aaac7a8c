#pragma once

#include <vector>

#include <shunt/pack/kernels.h>

#include "shared_memory.h"

namespace shunt::bench {

/// An item of the packed methods: [row | scales | local expert id, 4 bytes], rounded up to 16 bytes.
[[nodiscard]] std::int64_t item_bytes(const Workload& workload);
/// A result on its way back: the row, rounded up to 16 bytes.
[[nodiscard]] std::int64_t result_bytes(const Workload& workload);

/// Rows and scales of the rank that receives most.
[[nodiscard]] std::int64_t packed_rows_bytes(const Workload& workload);

/// Where the items from one source lie.
struct Piece {
  const std::byte* data = nullptr;
  std::int64_t items = 0;
};

/// Dispatch and combine by packing: items to each owner in (token, k) order, the exchange, then rows expert
/// by expert; results back in the same order, then the weighted sums. How bytes travel is the subclass's.
class PackedMethod : public Method {
 public:
  PackedMethod(const MethodContext& context, const PackKernels& kernels);
  void dispatch() final;
  void touch() final;
  void combine() override;
  [[nodiscard]] ArrivedRows arrived() const final;
  [[nodiscard]] const std::byte* combined() const final { return memory_.combined.data(); }
  void poison() final;
  [[nodiscard]] std::span<std::byte> own_tokens() final { return memory_.private_token_bytes(); }

 protected:
  /// Tells the owners how many items come, where the exchange itself does not. Returns whether it did
  /// anything.
  virtual bool exchange_counts() = 0;
  /// Called before the first outgoing() of a half, all counts known.
  virtual void prepare(bool results) { static_cast<void>(results); }
  /// Address for the items (or results) towards `peer`; send_items_ and return_items_ are known.
  virtual std::byte* outgoing(std::int32_t peer, bool results) = 0;
  virtual void exchange(bool results) = 0;
  /// The items (or results) from `peer`, once exchanged.
  virtual Piece incoming(std::int32_t peer, bool results) = 0;

  /// Rows into outgoing(); to_ is where the next item of a peer goes.
  virtual void pack();
  /// Rows out of incoming() to their expert: sets arrive_items_, starts_, num_rows_ and slot_.
  virtual void unpack();
  /// The start of unpack(): how many rows each local expert gets is in cursor_; afterwards each one's first row.
  void place_rows();
  /// Errors: Errc::check_failed for one that this rank does not have. Bytes that never came are poison; they must
  /// fail the check, not this process.
  [[nodiscard]] std::size_t checked_local_expert(std::int32_t local) const;
  [[nodiscard]] std::byte* scale_base() const;  ///< Behind the rows, so that rows stay dense

  const PackKernels& kernels_;
  const Workload& workload_;
  SharedMemory& memory_;
  Transport& transport_;
  std::chrono::milliseconds deadline_;
  std::int32_t rank_;
  std::int32_t ranks_;
  std::vector<std::int64_t> send_items_;    ///< [R] to each owner
  std::vector<std::int64_t> arrive_items_;  ///< [R] from each source
  std::vector<std::int64_t> return_items_;  ///< [R] results towards each rank
  std::vector<std::int64_t> expect_items_;  ///< [R] results from each owner
  std::int64_t local_experts_;
  std::int64_t num_rows_ = 0;
  std::vector<std::int64_t> starts_;             ///< [L + 1]
  std::vector<std::int64_t> cursor_;             ///< [max(L, R)]
  std::vector<std::byte*> to_;                   ///< [R]
  std::vector<const std::byte*> from_;           ///< [R]
  std::vector<std::vector<std::int64_t>> slot_;  ///< [R][items] row of each item of a source
  std::vector<const void*> sum_rows_;            ///< [K]

 private:
  void route();
  void pack_results();
  void reduce();
};

/// The packed method over Collectives::alltoallv.
[[nodiscard]] std::unique_ptr<Method> make_alltoallv_method(const MethodContext& context,
                                                            const PackKernels& kernels, bool pack_in_place);
[[nodiscard]] SharedSizes alltoallv_sizes(const Workload& workload);
/// The packed method over Transport::put_signal.
[[nodiscard]] std::unique_ptr<Method> make_put_method(const MethodContext& context,
                                                      const PackKernels& kernels);
[[nodiscard]] SharedSizes put_sizes(const Workload& workload);

/// Touch of contiguous rows, the same for every method that has them.
void touch_rows(const Workload& workload, std::int32_t rank, const std::int64_t* starts,
                const std::byte* rows, const float* scales, std::byte* outputs);

}  // namespace shunt::bench
