// shunt::cuda::AllToAll on tensors of PyTorch. Built always: without CUDA the constructor says why it cannot run.
#include <fmt/format.h>
#include <nanobind/stl/string.h>

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include <shunt/alltoall/cuda.h>
#include <shunt/core/error.h>
#include <shunt/layout/partition.h>

#include "all_to_all.h"
#include "arrays.h"
#include "config.h"
#include "cuda.h"
#include "errors.h"
#include "holder.h"
#include "world.h"

namespace nb = nanobind;

namespace shunt::python {
namespace {

using Holding = Holder<cuda::AllToAll>;

/// Of a stream of PyTorch: the number that it says it is.
[[nodiscard]] cuda::Stream stream_of(std::uintptr_t stream) noexcept {
  return reinterpret_cast<cuda::Stream>(stream);  // NOLINT(performance-no-int-to-ptr)
}

[[nodiscard]] std::size_t size(std::int64_t value) {
  return static_cast<std::size_t>(value);
}

[[nodiscard]] nb::dlpack::dtype address() {
  return nb::dtype<std::int64_t>();
}

/// body() as a call of the world, with its GPU current and without the GIL.
template <class Body>
auto call(Holding& holder, const Body& body) {
  return holder.world->call([&](Transport&) {
    const CurrentDevice device(holder.world->device());
    return body();
  });
}

/// Receipt of a send half.
template <Half half>
struct PyCudaSent {
  cuda::Sent<half> receipt;
};

class PyCudaReceived {
 public:
  PyCudaReceived(std::shared_ptr<Holding> from, const cuda::Received& received)
      : holder_(std::move(from)), received_(received), handed_out_(holder_->handed_out) {}

  [[nodiscard]] bool valid() const noexcept {
    return handed_out_ == holder_->handed_out && holder_->impl != nullptr;
  }
  [[nodiscard]] nb::object rows() const {
    const AllToAllConfig& config = checked().config();
    const std::int64_t rows = received_.rows.data == nullptr ? 0 : received_.max_rows;
    if (rows > 0 && received_.rows.stride_bytes != config.hidden * dtype_bytes(config.payload))
      return apart();
    return array(received_.rows.data, {size(rows), size(config.hidden)}, element_type(config.payload, true));
  }
  [[nodiscard]] nb::object scales() const {
    const AllToAllConfig& config = checked().config();
    if (config.scale == ScaleType::none || received_.scales == nullptr) return nb::none();
    return array(received_.scales, {size(received_.max_rows), size(scale_columns(config))},
                 scale_element(config.scale));
  }
  [[nodiscard]] nb::object counts() const {
    return array(received_.counts, {size(experts())}, nb::dtype<std::int32_t>());
  }
  [[nodiscard]] nb::object starts() const {
    return array(received_.starts, {size(experts() + 1)}, nb::dtype<std::int32_t>());
  }
  [[nodiscard]] nb::object counts_by_group() const {
    const AllToAllConfig& config = checked().config();
    if (!config.counts_by_group) return nb::none();
    const std::int32_t groups = holder_->world->world().size / config.dp_size;
    return array(received_.counts_by_group, {size(experts()), size(groups)}, nb::dtype<std::int32_t>());
  }
  [[nodiscard]] nb::object num_rows() const {
    return array(received_.num_rows, {1}, nb::dtype<std::int32_t>());
  }
  [[nodiscard]] nb::object row_pointers() const {
    static_cast<void>(checked());
    if (received_.row_pointers == nullptr) return nb::none();
    return array(received_.row_pointers, {size(received_.max_rows)}, address());
  }
  [[nodiscard]] nb::object scale_pointers() const {
    static_cast<void>(checked());
    if (received_.scale_pointers == nullptr) return nb::none();
    return array(received_.scale_pointers, {size(received_.max_rows)}, address());
  }

 private:
  [[nodiscard]] const cuda::AllToAll& checked() const {
    if (!valid())
      throw Error(Errc::invalid_state,
                  fmt::format("rank {}: these rows ended with combine_send; read them before, or copy them",
                              holder_->world->world().rank));
    return holder_->get();
  }
  [[nodiscard]] std::int64_t experts() const {
    return ExpertPartition{checked().config().num_experts, holder_->world->world().size}.count(
        holder_->world->world().rank);
  }
  [[nodiscard]] nb::object array(const void* data, std::vector<std::size_t> shape,
                                 nb::dlpack::dtype dtype) const {
    static_cast<void>(checked());
    return show({.data = data,
                 .shape = std::move(shape),
                 .dtype = dtype,
                 .writable = true,
                 .device = holder_->world->device()},
                true, keep(holder_));
  }
  /// Rows that the library has rounded up to 16 bytes: whole ones, cut to H elements.
  [[nodiscard]] nb::object apart() const {
    const AllToAllConfig& config = checked().config();
    const std::int64_t wide = received_.rows.stride_bytes / dtype_bytes(config.payload);
    const nb::object whole = array(received_.rows.data, {size(received_.max_rows), size(wide)},
                                   element_type(config.payload, true));
    return whole.attr("narrow")(1, 0, config.hidden);
  }

  std::shared_ptr<Holding> holder_;
  cuda::Received received_;
  std::int64_t handed_out_;
};

class PyCudaAllToAll {
 public:
  PyCudaAllToAll(const PyWorld& world, const nb::dict& fields, std::int32_t max_blocks) {
    const auto holder = std::make_shared<Holding>(world.get());
    const AllToAllConfig config = config_of(fields);
    holder->world->call([&](Transport& transport) {
      const CurrentDevice device(holder->world->device());
      holder->impl = std::make_unique<cuda::AllToAll>(
          transport, config, cuda::AllToAllOptions{.limit = {max_blocks}, .expert_output = true});
      holder->world->add(holder);
    });
    holder_ = holder;
  }

  PyCudaSent<Half::dispatch> dispatch_send(nb::handle tokens, nb::handle expert_ids, nb::handle scales,
                                           nb::handle live_tokens, std::uintptr_t stream) {
    const std::shared_ptr<Holding> holder = held();
    cuda::AllToAll& all = holder->get();
    const AllToAllConfig& config = all.config();
    const int device = holder->world->device();
    const Given given_tokens(tokens, Given::Use::read, "tokens");
    const Given given_ids(expert_ids, Given::Use::read, "expert_ids");
    const auto given_scales = optional_of(scales, Given::Use::read, "scales");
    const auto given_live = optional_of(live_tokens, Given::Use::read, "live_tokens");
    const MutableRows rows = rows_of(given_tokens, config.token_dtype, "tokens", device);
    check_columns("tokens", rows.hidden, config.hidden);
    cuda::TokenInput input;
    input.tokens = device_rows(rows);
    input.num_tokens = rows.rows;
    if (given_scales.has_value())
      input.scales =
          scales_of(*given_scales, config.scale, rows.rows, scale_columns(config), "scales", device);
    if (given_live.has_value()) input.live_tokens = count_at(*given_live, device);
    const Ids chosen = ids_of(given_ids, "expert_ids", device);
    const std::int64_t id_rows = chosen.is_wide ? chosen.wide.rows : chosen.narrow.rows;
    if (id_rows != rows.rows) refuse(fmt::format("expert_ids has {} rows for {} tokens", id_rows, rows.rows));
    check_columns("expert_ids", chosen.is_wide ? chosen.wide.cols : chosen.narrow.cols, config.top_k);
    cuda::ExpertIds ids;
    ids.wide = chosen.is_wide;
    ids.data = chosen.is_wide ? static_cast<const void*>(chosen.wide.data) : chosen.narrow.data;
    ids.row_stride = chosen.is_wide ? chosen.wide.row_stride : chosen.narrow.row_stride;
    return {call(*holder, [&] {
      cuda::Sent<Half::dispatch> sent = all.dispatch_send(input, ids, stream_of(stream));
      ++holder->handed_out;
      return sent;
    })};
  }

  PyCudaReceived dispatch_recv(PyCudaSent<Half::dispatch>& sent, std::uintptr_t stream) {
    const std::shared_ptr<Holding> holder = held();
    cuda::AllToAll& all = holder->get();
    return {holder,
            call(*holder, [&] { return all.dispatch_recv(std::move(sent.receipt), stream_of(stream)); })};
  }

  /// Without results: they lie in expert_output().
  PyCudaSent<Half::combine> combine_send(nb::handle results, std::uintptr_t stream) {
    const std::shared_ptr<Holding> holder = held();
    cuda::AllToAll& all = holder->get();
    const auto given = optional_of(results, Given::Use::read, "results");
    cuda::DeviceRows from = all.expert_output();
    if (given.has_value()) {
      const MutableRows rows = rows_of(*given, all.config().expert_dtype, "results", holder->world->device());
      check_columns("results", rows.hidden, all.config().hidden);
      if (rows.rows < all.max_rows())
        refuse(fmt::format(
            "results has {} rows; {} are needed (max_rows), since the host does not know how many "
            "have arrived",
            rows.rows, all.max_rows()));
      from = device_rows(rows);
    }
    return {call(*holder, [&] {
      cuda::Sent<Half::combine> sent = all.combine_send(from, stream_of(stream));
      ++holder->handed_out;
      return sent;
    })};
  }

  /// `tokens` is T of this step's dispatch_send.
  void combine_recv(PyCudaSent<Half::combine>& sent, nb::handle weights, nb::handle out, bool accumulate,
                    std::int64_t tokens, std::uintptr_t stream) {
    const std::shared_ptr<Holding> holder = held();
    cuda::AllToAll& all = holder->get();
    const int device = holder->world->device();
    const Given given_weights(weights, Given::Use::read, "weights");
    const Given given_out(out, Given::Use::write, "out");
    const View2<const float> terms = weights_of(given_weights, "weights", device);
    const MutableRows to = rows_of(given_out, all.config().out_dtype, "out", device);
    check_rows("weights", terms.rows, tokens);
    check_columns("weights", terms.cols, all.config().top_k);
    check_rows("out", to.rows, tokens);
    check_columns("out", to.hidden, all.config().hidden);
    call(*holder, [&] {
      all.combine_recv(std::move(sent.receipt), {.data = terms.data, .row_stride = terms.row_stride},
                       device_rows(to), stream_of(stream), accumulate);
      return 0;
    });
  }

  /// Throws what kernels have found.
  void check() {
    const std::shared_ptr<Holding> holder = held();
    call(*holder, [&] {
      holder->get().check();
      return 0;
    });
  }
  [[nodiscard]] nb::object token_buffer() {
    const AllToAllConfig& config = held()->get().config();
    return memory(held()->get().token_buffer(), config.max_tokens, config.token_dtype);
  }
  [[nodiscard]] nb::object expert_output() {
    return memory(held()->get().expert_output(), held()->get().max_rows(),
                  held()->get().config().expert_dtype);
  }
  [[nodiscard]] std::int64_t max_rows() { return held()->get().max_rows(); }
  [[nodiscard]] std::int64_t workspace_bytes() { return held()->get().workspace_bytes(); }
  [[nodiscard]] std::int64_t steps_completed() { return held()->get().steps_completed(); }
  [[nodiscard]] nb::list alive() {
    const std::shared_ptr<Holding> holder = held();
    nb::list result;
    for (const std::uint8_t one : holder->get().alive()) result.append(one != 0);
    return result;
  }
  void close() noexcept { holder_.reset(); }
  [[nodiscard]] bool closed() const noexcept { return holder_ == nullptr || holder_->impl == nullptr; }

 private:
  /// What a call keeps until it returns: another thread may close meanwhile.
  [[nodiscard]] std::shared_ptr<Holding> held() const {
    if (holder_ == nullptr) throw Error(Errc::invalid_state, "this AllToAll has been closed");
    return holder_;
  }
  static void check_columns(const char* what, std::int64_t columns, std::int64_t needed) {
    if (columns != needed) refuse(fmt::format("{} has {} columns; {} are needed", what, columns, needed));
  }
  static void check_rows(const char* what, std::int64_t rows, std::int64_t needed) {
    if (rows < needed) refuse(fmt::format("{} has {} rows for a step of {} tokens", what, rows, needed));
  }
  [[nodiscard]] static cuda::DeviceRows device_rows(const MutableRows& rows) {
    return {rows.data, rows.dtype, rows.row_stride_bytes};
  }
  [[nodiscard]] static const std::int32_t* count_at(const Given& live, int device) {
    const nb::dlpack::dtype type = live.dtype();
    if (live.device_type() != nb::device::cuda::value || live.device() != device || live.size() < 1 ||
        type.bits != 32 || type.code == static_cast<std::uint8_t>(nb::dlpack::dtype_code::Float))
      refuse(fmt::format("live_tokens must be a number, or a tensor of one int32 on cuda:{}", device));
    return static_cast<const std::int32_t*>(live.data());
  }
  /// The library's rows as a tensor; None where it has no such memory.
  [[nodiscard]] nb::object memory(const cuda::DeviceRows& rows, std::int64_t count, DType dtype) {
    const std::shared_ptr<Holding> holder = held();
    if (rows.data == nullptr) return nb::none();
    const std::int64_t hidden = holder->get().config().hidden;
    const nb::object whole = show({.data = rows.data,
                                   .shape = {size(count), size(rows.stride_bytes / dtype_bytes(dtype))},
                                   .dtype = element_type(dtype, true),
                                   .writable = true,
                                   .device = holder->world->device()},
                                  true, keep(holder));
    return rows.stride_bytes == hidden * dtype_bytes(dtype) ? whole : whole.attr("narrow")(1, 0, hidden);
  }

  std::shared_ptr<Holding> holder_;
};

}  // namespace

void bind_cuda_all_to_all(nb::module_& module) {
  nb::class_<PyCudaSent<Half::dispatch>>(module, "CudaDispatchSent");
  nb::class_<PyCudaSent<Half::combine>>(module, "CudaCombineSent");
  nb::class_<PyCudaReceived>(module, "CudaReceived")
      .def_prop_ro("valid", &PyCudaReceived::valid)
      .def("rows", &PyCudaReceived::rows)
      .def("scales", &PyCudaReceived::scales)
      .def("starts", &PyCudaReceived::starts)
      .def("counts", &PyCudaReceived::counts)
      .def("counts_by_group", &PyCudaReceived::counts_by_group)
      .def("num_rows", &PyCudaReceived::num_rows)
      .def("row_pointers", &PyCudaReceived::row_pointers)
      .def("scale_pointers", &PyCudaReceived::scale_pointers);
  nb::class_<PyCudaAllToAll>(module, "CudaAllToAll")
      .def(nb::init<const PyWorld&, const nb::dict&, std::int32_t>(), nb::arg("world"), nb::arg("config"),
           nb::arg("max_blocks"))
      .def("dispatch_send", &PyCudaAllToAll::dispatch_send, nb::arg("tokens"), nb::arg("expert_ids"),
           nb::arg("scales").none(), nb::arg("live_tokens").none(), nb::arg("stream"))
      .def("dispatch_recv", &PyCudaAllToAll::dispatch_recv, nb::arg("sent"), nb::arg("stream"))
      .def("combine_send", &PyCudaAllToAll::combine_send, nb::arg("results").none(), nb::arg("stream"))
      .def("combine_recv", &PyCudaAllToAll::combine_recv, nb::arg("sent"), nb::arg("weights"), nb::arg("out"),
           nb::arg("accumulate"), nb::arg("tokens"), nb::arg("stream"))
      .def("check", &PyCudaAllToAll::check)
      .def("token_buffer", &PyCudaAllToAll::token_buffer)
      .def("expert_output", &PyCudaAllToAll::expert_output)
      .def("max_rows", &PyCudaAllToAll::max_rows)
      .def("workspace_bytes", &PyCudaAllToAll::workspace_bytes)
      .def("steps_completed", &PyCudaAllToAll::steps_completed)
      .def("alive", &PyCudaAllToAll::alive)
      .def("close", &PyCudaAllToAll::close)
      .def_prop_ro("closed", &PyCudaAllToAll::closed);
}

}  // namespace shunt::python
