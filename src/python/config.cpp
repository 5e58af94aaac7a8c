#include "config.h"

#include <fmt/format.h>
#include <nanobind/stl/string.h>

#include <array>
#include <chrono>
#include <string>
#include <utility>

#include "errors.h"

namespace nb = nanobind;

namespace shunt::python {
namespace {

template <class T>
T field(const nb::dict& fields, const char* key, const char* what) {
  T value{};
  if (!nb::try_cast(fields[key], value)) refuse(fmt::format("Config: {} must be {}", key, what));
  return value;
}

template <class Enum, std::size_t N>
Enum choice(const nb::dict& fields, const char* key,
            const std::array<std::pair<const char*, Enum>, N>& names) {
  const auto text = field<std::string>(fields, key, "a string");
  std::string allowed;
  for (const auto& [name, value] : names) {
    if (text == name) return value;
    allowed += fmt::format("{}{}", allowed.empty() ? "" : ", ", name);
  }
  refuse(fmt::format("Config: {} is \"{}\"; allowed are {}", key, text, allowed));
}

}  // namespace

AllToAllConfig config_of(const nb::dict& fields) {
  const auto number = [&](const char* key) {
    return field<std::int64_t>(fields, key, "a whole number of 64 bits");
  };
  const auto small = [&](const char* key) {
    return field<std::int32_t>(fields, key, "a whole number of 32 bits");
  };
  const auto flag = [&](const char* key) { return field<bool>(fields, key, "True or False"); };
  const auto dtype = [&](const char* key) {
    return parse_dtype(field<std::string>(fields, key, "an element type"));
  };
  AllToAllConfig config;
  config.max_tokens = number("max_tokens");
  config.num_experts = small("num_experts");
  config.top_k = small("top_k");
  config.hidden = number("hidden");
  config.token_dtype = dtype("token_dtype");
  config.payload = dtype("payload");
  config.scale = choice(fields, "scale",
                        std::array{std::pair{"none", ScaleType::none}, std::pair{"float32", ScaleType::f32},
                                   std::pair{"ue8m0", ScaleType::ue8m0}});
  config.scale_block = number("scale_block");
  config.expert_dtype = dtype("expert_dtype");
  config.out_dtype = dtype("out_dtype");
  config.dp_size = small("dp_size");
  config.layout =
      choice(fields, "layout",
             std::array{std::pair{"packed", RowLayout::packed}, std::pair{"padded", RowLayout::padded}});
  config.alignment = number("alignment");
  config.padding =
      choice(fields, "padding",
             std::array{std::pair{"untouched", PaddingRows::untouched}, std::pair{"zero", PaddingRows::zero},
                        std::pair{"poison", PaddingRows::poison}});
  config.delivery = choice(fields, "delivery",
                           std::array{std::pair{"rows", Delivery::rows}, std::pair{"view", Delivery::view}});
  config.movement = choice(
      fields, "movement",
      std::array{std::pair{"automatic", Movement::automatic}, std::pair{"pull", Movement::pull},
                 std::pair{"push", Movement::push}, std::pair{"push_streaming", Movement::push_streaming}});
  config.push_from_bytes = number("push_from_bytes");
  config.stream_from_bytes = number("stream_from_bytes");
  config.max_recv_rows = number("max_recv_rows");
  config.path = choice(fields, "path",
                       std::array{std::pair{"automatic", Path::automatic}, std::pair{"flat", Path::flat},
                                  std::pair{"hierarchical", Path::hierarchical}});
  config.presum = flag("presum");
  config.on_peer_loss =
      choice(fields, "on_peer_loss",
             std::array{std::pair{"fail", PeerLoss::fail}, std::pair{"mask", PeerLoss::mask}});
  config.check_messages = flag("check_messages");
  config.counts_by_group = flag("counts_by_group");
  config.record_waits = flag("record_waits");
  config.check_replicas = flag("check_replicas");
  const auto deadline = field<double>(fields, "deadline", "a number of seconds");
  if (!(deadline >= 0.001 && deadline <= 1e6))
    refuse(fmt::format("Config: deadline is {} s; 0.001 to 1000000 are allowed", deadline));
  config.deadline = std::chrono::milliseconds(static_cast<std::int64_t>(deadline * 1000));
  return config;
}

std::int64_t scale_columns(const AllToAllConfig& config) {
  return (config.hidden + config.scale_block - 1) / config.scale_block;
}

nb::dlpack::dtype scale_element(ScaleType type) {
  return type == ScaleType::f32 ? nb::dtype<float>() : nb::dtype<std::uint8_t>();
}

}  // namespace shunt::python
