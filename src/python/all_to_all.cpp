#include "all_to_all.h"

#include <fmt/format.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <memory>
#include <optional>
#include <string>
#include <utility>

#include <shunt/alltoall/all_to_all.h>
#include <shunt/core/error.h>

#include "arrays.h"
#include "config.h"
#include "errors.h"
#include "holder.h"
#include "world.h"

namespace nb = nanobind;

namespace shunt::python {
namespace {

/// Receipt of a send half.
template <Half half>
struct PySent {
  Sent<half> receipt;
};

[[nodiscard]] std::size_t size(std::int64_t value) {
  return static_cast<std::size_t>(value);
}

using Holding = Holder<AllToAll>;

[[nodiscard]] nb::object show_rows(const std::shared_ptr<Holding>& holder, const Rows& rows, bool writable,
                                   bool torch) {
  return show({.data = rows.data,
               .shape = {size(rows.rows), size(rows.hidden)},
               .dtype = element_type(rows.dtype, torch),
               .writable = writable},
              torch, keep(holder));
}

class PyReceived {
 public:
  PyReceived(std::shared_ptr<Holding> from, const Received& received)
      : holder_(std::move(from)), received_(received), handed_out_(holder_->handed_out) {}

  [[nodiscard]] bool valid() const noexcept {
    return handed_out_ == holder_->handed_out && holder_->impl != nullptr;
  }
  [[nodiscard]] nb::object rows(bool torch) const {
    return show_rows(holder(), received_.rows, false, torch);
  }
  [[nodiscard]] nb::object scales(bool torch) const {
    if (holder()->get().config().scale == ScaleType::none || received_.scales == nullptr) return nb::none();
    const AllToAllConfig& config = holder_->get().config();
    return show({.data = received_.scales,
                 .shape = {size(received_.starts.back()), size(scale_columns(config))},
                 .dtype = scale_element(config.scale)},
                torch, keep(holder_));
  }
  [[nodiscard]] nb::object starts(bool torch) const { return list(received_.starts, torch); }
  [[nodiscard]] nb::object counts(bool torch) const { return list(received_.counts, torch); }
  [[nodiscard]] nb::object counts_by_group(bool torch) const {
    if (!holder()->get().config().counts_by_group) return nb::none();
    const View2<const std::int32_t>& counts = received_.counts_by_group;
    return show({.data = counts.data,
                 .shape = {size(counts.rows), size(counts.cols)},
                 .dtype = nb::dtype<std::int32_t>()},
                torch, keep(holder_));
  }
  [[nodiscard]] std::int64_t num_rows() const {
    check_valid();
    return received_.num_rows;
  }
  [[nodiscard]] std::int64_t length() const {
    check_valid();
    return received_.starts.back();
  }
  /// Row `index` where it lies in its source's memory; None for padding.
  [[nodiscard]] nb::object view_row(std::int64_t index, bool torch) const {
    const AllToAllConfig& config = holder()->get().config();
    if (config.delivery != Delivery::view)
      refuse("view_row: the config says delivery \"rows\"; index rows instead");
    check_index(index);
    const void* const row = received_.row_pointers[size(index)];
    if (row == nullptr) return nb::none();
    return show({.data = row, .shape = {size(config.hidden)}, .dtype = element_type(config.payload, torch)},
                torch, keep(holder_));
  }
  [[nodiscard]] nb::object view_scales(std::int64_t index, bool torch) const {
    const AllToAllConfig& config = holder()->get().config();
    if (config.delivery != Delivery::view || config.scale == ScaleType::none)
      refuse("view_scales: needs delivery \"view\" and scales");
    check_index(index);
    const void* const row = received_.scale_pointers[size(index)];
    if (row == nullptr) return nb::none();
    return show({.data = row, .shape = {size(scale_columns(config))}, .dtype = scale_element(config.scale)},
                torch, keep(holder_));
  }

 private:
  [[nodiscard]] const std::shared_ptr<Holding>& holder() const {
    check_valid();
    return holder_;
  }
  void check_valid() const {
    if (!valid())
      throw Error(
          Errc::invalid_state,
          fmt::format("rank {}: these rows ended with combine_send; read them before, or give dispatch_recv "
                      "arrays to copy them to",
                      holder_->world->world().rank));
  }
  void check_index(std::int64_t index) const {
    if (index < 0 || index >= received_.starts.back())
      refuse(fmt::format("row {} is outside [0, {})", index, received_.starts.back()));
  }
  [[nodiscard]] nb::object list(View1<const std::int64_t> values, bool torch) const {
    return show({.data = values.data(), .shape = {values.size()}, .dtype = nb::dtype<std::int64_t>()}, torch,
                keep(holder()));
  }

  std::shared_ptr<Holding> holder_;
  Received received_;
  std::int64_t handed_out_;
};

class PyAllToAll {
 public:
  PyAllToAll(const PyWorld& world, const nb::dict& fields) {
    const auto holder = std::make_shared<Holding>(world.get());
    const AllToAllConfig config = config_of(fields);
    holder->world->call([&](Transport& transport) {
      holder->impl = std::make_unique<AllToAll>(transport, config);
      holder->world->add(holder);
    });
    holder_ = holder;
  }

  PySent<Half::dispatch> dispatch_send(nb::handle tokens, nb::handle expert_ids, nb::handle scales,
                                       nb::handle weights, std::optional<std::int32_t> live) {
    const std::shared_ptr<Holding> holder = held();
    AllToAll& all = holder->get();
    const AllToAllConfig& config = all.config();
    const Given given_tokens(tokens, Given::Use::read, "tokens");
    const Given given_ids(expert_ids, Given::Use::read, "expert_ids");
    const auto given_scales = optional_of(scales, Given::Use::read, "scales");
    const auto given_weights = optional_of(weights, Given::Use::read, "weights");
    TokenInput input;
    input.tokens = rows_of(given_tokens, config.token_dtype, "tokens");
    const std::int64_t count = live.has_value() ? *live : input.tokens.rows;
    if (live.has_value()) input.live_tokens = &*live;
    if (given_scales.has_value())
      input.scales = scales_of(*given_scales, config.scale, count, scale_columns(config), "scales");
    if (given_weights.has_value()) {
      const View2<const float> given = weights_of(*given_weights, "weights");
      if (given.rows < count || given.cols != config.top_k || given.row_stride != given.cols)
        refuse(fmt::format("weights is [{}, {}] with rows {} elements apart; it must be [{}, {}], dense",
                           given.rows, given.cols, given.row_stride, count, config.top_k));
      input.weights = given.data;
    }
    const Ids chosen = ids_of(given_ids, "expert_ids");
    if (!live.has_value() && count > 0 && (chosen.is_wide ? chosen.wide.rows : chosen.narrow.rows) != count)
      refuse(fmt::format("expert_ids has {} rows for {} tokens",
                         chosen.is_wide ? chosen.wide.rows : chosen.narrow.rows, count));
    return {holder->world->call([&](Transport&) {
      Sent<Half::dispatch> sent =
          chosen.is_wide ? all.dispatch_send(input, chosen.wide) : all.dispatch_send(input, chosen.narrow);
      ++holder->handed_out;
      return sent;
    })};
  }

  PyReceived dispatch_recv(PySent<Half::dispatch>& sent, nb::handle rows, nb::handle scales) {
    const std::shared_ptr<Holding> holder = held();
    AllToAll& all = holder->get();
    const AllToAllConfig& config = all.config();
    if (rows.is_none()) {
      if (!scales.is_none()) refuse("scales to copy to were given without rows to copy to");
      return {holder,
              holder->world->call([&](Transport&) { return all.dispatch_recv(std::move(sent.receipt)); })};
    }
    const Given given_rows(rows, Given::Use::write, "rows");
    const auto given_scales = optional_of(scales, Given::Use::write, "scales");
    const MutableRows to = rows_of(given_rows, config.payload, "rows");
    void* to_scales = nullptr;
    if (given_scales.has_value())
      to_scales = scales_of(*given_scales, config.scale, to.rows, scale_columns(config), "scales");
    return {holder, holder->world->call([&](Transport&) {
              return all.dispatch_recv(std::move(sent.receipt), to, to_scales);
            })};
  }

  /// Without results: they lie in expert_output().
  PySent<Half::combine> combine_send(nb::handle results) {
    const std::shared_ptr<Holding> holder = held();
    AllToAll& all = holder->get();
    const auto given = optional_of(results, Given::Use::read, "results");
    const Rows rows =
        given.has_value() ? rows_of(*given, all.config().expert_dtype, "results") : all.expert_output();
    return {holder->world->call([&](Transport&) {
      Sent<Half::combine> sent = all.combine_send(rows);
      ++holder->handed_out;
      return sent;
    })};
  }

  void combine_recv(PySent<Half::combine>& sent, nb::handle weights, nb::handle out, bool accumulate) {
    const std::shared_ptr<Holding> holder = held();
    AllToAll& all = holder->get();
    const Given given_weights(weights, Given::Use::read, "weights");
    const Given given_out(out, Given::Use::write, "out");
    const View2<const float> terms = weights_of(given_weights, "weights");
    const MutableRows to = rows_of(given_out, all.config().out_dtype, "out");
    holder->world->call(
        [&](Transport&) { all.combine_recv(std::move(sent.receipt), terms, to, accumulate); });
  }

  [[nodiscard]] nb::object token_buffer(bool torch) {
    return show_rows(held(), held()->get().token_buffer(), true, torch);
  }
  [[nodiscard]] nb::object token_scales(bool torch) {
    const std::shared_ptr<Holding> holder = held();
    const AllToAllConfig& config = holder->get().config();
    void* const scales = holder->impl->token_scales();
    if (scales == nullptr) return nb::none();
    return show({.data = scales,
                 .shape = {size(config.max_tokens), size(scale_columns(config))},
                 .dtype = scale_element(config.scale),
                 .writable = true},
                torch, keep(holder));
  }
  [[nodiscard]] nb::object expert_output(bool torch) {
    return show_rows(held(), held()->get().expert_output(), true, torch);
  }
  [[nodiscard]] std::int64_t max_rows() { return held()->get().max_rows(); }
  [[nodiscard]] std::int64_t workspace_bytes() { return held()->get().workspace_bytes(); }
  [[nodiscard]] nb::list alive() {
    const std::shared_ptr<Holding> holder = held();
    nb::list result;
    for (const std::uint8_t one : holder->get().alive()) result.append(one != 0);
    return result;
  }
  [[nodiscard]] nb::list wait_ns(const std::string& half) {
    const std::shared_ptr<Holding> holder = held();
    nb::list result;
    for (const std::int64_t one : holder->get().wait_ns(half_of(half))) result.append(one);
    return result;
  }
  [[nodiscard]] nb::dict step_times() {
    const std::shared_ptr<Holding> holder = held();
    const StepTimes& times = holder->get().step_times();
    nb::dict result;
    result["publish_ns"] = times.publish_ns;
    result["dispatch_wait_ns"] = times.dispatch_wait_ns;
    result["place_ns"] = times.place_ns;
    result["move_ns"] = times.move_ns;
    result["combine_wait_ns"] = times.combine_wait_ns;
    result["reduce_ns"] = times.reduce_ns;
    return result;
  }
  [[nodiscard]] nb::dict byte_counters() {
    const std::shared_ptr<Holding> holder = held();
    const ByteCounters& bytes = holder->get().byte_counters();
    nb::dict result;
    result["staged_tokens"] = bytes.staged_tokens;
    result["staged_outputs"] = bytes.staged_outputs;
    result["moved_rows"] = bytes.moved_rows;
    result["crossed_rows"] = bytes.crossed_rows;
    result["crossed_results"] = bytes.crossed_results;
    result["crossed_messages"] = bytes.crossed_messages;
    return result;
  }
  void close() noexcept { holder_.reset(); }
  [[nodiscard]] bool closed() const noexcept { return holder_ == nullptr || holder_->impl == nullptr; }

 private:
  /// What a call keeps until it returns: it waits without the GIL, and another thread may close meanwhile.
  [[nodiscard]] std::shared_ptr<Holding> held() const {
    if (holder_ == nullptr) throw Error(Errc::invalid_state, "this AllToAll has been closed");
    return holder_;
  }
  [[nodiscard]] static Half half_of(const std::string& name) {
    if (name != "dispatch" && name != "combine")
      refuse(fmt::format("half is \"{}\"; allowed are dispatch, combine", name));
    return name == "dispatch" ? Half::dispatch : Half::combine;
  }

  std::shared_ptr<Holding> holder_;
};

}  // namespace

void bind_all_to_all(nb::module_& module) {
  nb::class_<PySent<Half::dispatch>>(module, "DispatchSent");
  nb::class_<PySent<Half::combine>>(module, "CombineSent");
  nb::class_<PyReceived>(module, "Received")
      .def_prop_ro("valid", &PyReceived::valid)
      .def_prop_ro("num_rows", &PyReceived::num_rows)
      .def("__len__", &PyReceived::length)
      .def("rows", &PyReceived::rows, nb::arg("torch"))
      .def("scales", &PyReceived::scales, nb::arg("torch"))
      .def("starts", &PyReceived::starts, nb::arg("torch"))
      .def("counts", &PyReceived::counts, nb::arg("torch"))
      .def("counts_by_group", &PyReceived::counts_by_group, nb::arg("torch"))
      .def("view_row", &PyReceived::view_row, nb::arg("index"), nb::arg("torch"))
      .def("view_scales", &PyReceived::view_scales, nb::arg("index"), nb::arg("torch"));
  nb::class_<PyAllToAll>(module, "AllToAll")
      .def(nb::init<const PyWorld&, const nb::dict&>(), nb::arg("world"), nb::arg("config"))
      .def("dispatch_send", &PyAllToAll::dispatch_send, nb::arg("tokens"), nb::arg("expert_ids"),
           nb::arg("scales").none(), nb::arg("weights").none(), nb::arg("live_tokens").none())
      .def("dispatch_recv", &PyAllToAll::dispatch_recv, nb::arg("sent"), nb::arg("rows").none(),
           nb::arg("scales").none())
      .def("combine_send", &PyAllToAll::combine_send, nb::arg("results").none())
      .def("combine_recv", &PyAllToAll::combine_recv, nb::arg("sent"), nb::arg("weights"), nb::arg("out"),
           nb::arg("accumulate"))
      .def("token_buffer", &PyAllToAll::token_buffer, nb::arg("torch"))
      .def("token_scales", &PyAllToAll::token_scales, nb::arg("torch"))
      .def("expert_output", &PyAllToAll::expert_output, nb::arg("torch"))
      .def("max_rows", &PyAllToAll::max_rows)
      .def("workspace_bytes", &PyAllToAll::workspace_bytes)
      .def("alive", &PyAllToAll::alive)
      .def("wait_ns", &PyAllToAll::wait_ns, nb::arg("half"))
      .def("step_times", &PyAllToAll::step_times)
      .def("byte_counters", &PyAllToAll::byte_counters)
      .def("close", &PyAllToAll::close)
      .def_prop_ro("closed", &PyAllToAll::closed);
}

}  // namespace shunt::python
