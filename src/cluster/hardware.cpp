#include <shunt/cluster/hardware.h>

#include <array>
#include <filesystem>

#include <fmt/format.h>

#include <shunt/core/error.h>

#include "presets.h"
#include "toml_reader.h"

namespace shunt {
namespace {

constexpr const char* kEnvironment = "SHUNT_HARDWARE";
constexpr std::int64_t kFormat = 1;
// Bounds that no machine reaches; a value beyond them is a wrong unit.
constexpr double kMaxGbPerS = 1e6;
constexpr double kMaxTflops = 1e6;
constexpr double kMaxWatts = 1e5;
constexpr std::int64_t kMinMemory = std::int64_t{1} << 30;
constexpr std::int64_t kMaxMemory = std::int64_t{1} << 44;
constexpr std::int64_t kMaxUnits = 1 << 20;

const std::vector<std::string> kFabrics = {"nvlink", "xgmi", "pcie", "infiniband", "ethernet", "efa"};
const std::vector<std::string> kScaleUps = {"none", "full_mesh", "switched"};

std::string folder(const std::string& directory, const char* name) {
  return (std::filesystem::path(directory) / name).string();
}

template <class Spec>
void read_head(const detail::TomlReader& reader, const std::string& path, Spec& spec) {
  detail::expect_format(reader, kFormat);
  spec.name = detail::stem(path);
  spec.description = reader.text("description");
  spec.source = reader.text("source");
}

/// The preset that `key` names. A wrong name is a mistake at that place of the file.
template <class Find>
auto refer(const detail::TomlReader& reader, const std::string& key, const std::string& directory,
           const Find& find) {
  const std::string name = reader.text(key);
  if (name.ends_with(".toml")) reader.fail(key, "expected the name of a preset, not a path");
  try {
    return find(name, directory);
  } catch (const Error& error) {
    if (error.code() == Errc::invalid_argument) reader.fail(key, error.what());
    throw;
  }
}

}  // namespace

const char* fabric_name(Fabric fabric) noexcept {
  return kFabrics[static_cast<std::size_t>(fabric)].c_str();
}

const char* scale_up_name(ScaleUp scale_up) noexcept {
  return kScaleUps[static_cast<std::size_t>(scale_up)].c_str();
}

double NodeSpec::network_gb_per_s_per_gpu() const noexcept {
  return gpus == 0 ? 0 : nic.link.gb_per_s * nics / gpus;
}

std::string hardware_directory() {
  return detail::find_directory(kEnvironment, "hardware");
}

std::vector<std::string> list_gpus(const std::string& directory) {
  return detail::list_files(folder(directory, "gpus"), "GPU", kEnvironment);
}
std::vector<std::string> list_nodes(const std::string& directory) {
  return detail::list_files(folder(directory, "nodes"), "node", kEnvironment);
}
std::vector<std::string> list_nics(const std::string& directory) {
  return detail::list_files(folder(directory, "nics"), "NIC", kEnvironment);
}
std::vector<std::string> list_links(const std::string& directory) {
  return detail::list_files(folder(directory, "links"), "link", kEnvironment);
}

LinkSpec find_link(const std::string& name, const std::string& directory) {
  const std::string path = detail::find_file(name, folder(directory, "links"), "link", kEnvironment);
  const toml::table table = detail::parse_toml(path);
  const detail::TomlReader reader(
      path, table, {"format", "description", "source", "fabric", "gb_per_s", "usable_gb_per_s"});
  LinkSpec link;
  read_head(reader, path, link);
  link.fabric = static_cast<Fabric>(reader.choice("fabric", kFabrics));
  link.gb_per_s = reader.number("gb_per_s", 1e-3, kMaxGbPerS);
  link.usable_gb_per_s = reader.number_or("usable_gb_per_s", 1e-3, link.gb_per_s, 0);
  return link;
}

NicSpec find_nic(const std::string& name, const std::string& directory) {
  const std::string path = detail::find_file(name, folder(directory, "nics"), "NIC", kEnvironment);
  const toml::table table = detail::parse_toml(path);
  const detail::TomlReader reader(path, table,
                                  {"format", "description", "source", "link", "usable_gb_per_s"});
  NicSpec nic;
  read_head(reader, path, nic);
  nic.link = refer(reader, "link", directory, find_link);
  if (nic.link.fabric != Fabric::infiniband && nic.link.fabric != Fabric::ethernet &&
      nic.link.fabric != Fabric::efa) {
    reader.fail("link", fmt::format("\"{}\" is {}, a network card needs infiniband, ethernet or efa",
                                    nic.link.name, fabric_name(nic.link.fabric)));
  }
  nic.usable_gb_per_s =
      reader.number_or("usable_gb_per_s", 1e-3, nic.link.gb_per_s, nic.link.usable_gb_per_s);
  return nic;
}

GpuSpec find_gpu(const std::string& name, const std::string& directory) {
  const std::string path = detail::find_file(name, folder(directory, "gpus"), "GPU", kEnvironment);
  const toml::table table = detail::parse_toml(path);
  const detail::TomlReader reader(
      path, table,
      {"format", "description", "source", "memory_bytes", "hbm_gb_per_s", "bf16_tflops", "fp8_tflops",
       "fp4_tflops", "int8_tops", "sms", "dies", "power_w", "scale_up", "pcie"});
  GpuSpec gpu;
  read_head(reader, path, gpu);
  gpu.memory_bytes = reader.integer("memory_bytes", kMinMemory, kMaxMemory);
  gpu.hbm_gb_per_s = reader.number("hbm_gb_per_s", 1, kMaxGbPerS);
  gpu.bf16_tflops = reader.number("bf16_tflops", 0.1, kMaxTflops);
  gpu.fp8_tflops = reader.number_or("fp8_tflops", 0.1, kMaxTflops, 0);
  gpu.fp4_tflops = reader.number_or("fp4_tflops", 0.1, kMaxTflops, 0);
  gpu.int8_tops = reader.number_or("int8_tops", 0.1, kMaxTflops, 0);
  gpu.sms = static_cast<std::int32_t>(reader.integer_or("sms", 1, kMaxUnits, 0));
  gpu.dies = static_cast<std::int32_t>(reader.integer_or("dies", 1, 64, 1));
  gpu.power_w = reader.number_or("power_w", 1, kMaxWatts, 0);
  gpu.has_scale_up = reader.has("scale_up");
  if (gpu.has_scale_up) {
    gpu.scale_up = refer(reader, "scale_up", directory, find_link);
    if (gpu.scale_up.fabric != Fabric::nvlink && gpu.scale_up.fabric != Fabric::xgmi)
      reader.fail("scale_up", fmt::format("\"{}\" is {}, expected nvlink or xgmi", gpu.scale_up.name,
                                          fabric_name(gpu.scale_up.fabric)));
  }
  gpu.pcie = refer(reader, "pcie", directory, find_link);
  if (gpu.pcie.fabric != Fabric::pcie)
    reader.fail("pcie",
                fmt::format("\"{}\" is {}, expected pcie", gpu.pcie.name, fabric_name(gpu.pcie.fabric)));
  return gpu;
}

NodeSpec find_node(const std::string& name, const std::string& directory) {
  const std::string path = detail::find_file(name, folder(directory, "nodes"), "node", kEnvironment);
  const toml::table table = detail::parse_toml(path);
  const detail::TomlReader reader(path, table,
                                  {"format", "description", "source", "gpu", "gpus", "domain_gpus",
                                   "scale_up", "switches", "nic", "nics"});
  NodeSpec node;
  read_head(reader, path, node);
  node.gpu = refer(reader, "gpu", directory, find_gpu);
  node.gpus = static_cast<std::int32_t>(reader.integer("gpus", 1, kMaxUnits));
  node.scale_up = static_cast<ScaleUp>(reader.choice("scale_up", kScaleUps));
  node.domain_gpus = static_cast<std::int32_t>(reader.integer_or("domain_gpus", 1, kMaxUnits, node.gpus));
  node.switches = static_cast<std::int32_t>(reader.integer_or("switches", 1, kMaxUnits, 0));
  node.nic = refer(reader, "nic", directory, find_nic);
  node.nics = static_cast<std::int32_t>(reader.integer("nics", 1, kMaxUnits));
  if (node.domain_gpus % node.gpus != 0) {
    reader.fail("domain_gpus",
                fmt::format("{} is not a multiple of the {} GPUs of a host", node.domain_gpus, node.gpus));
  }
  if (node.scale_up == ScaleUp::none && node.domain_gpus != node.gpus)
    reader.fail("domain_gpus", "without scale_up a domain does not reach beyond the host");
  if (node.scale_up != ScaleUp::none && !node.gpu.has_scale_up)
    reader.fail("scale_up", fmt::format("the GPU \"{}\" has neither NVLink nor xGMI", node.gpu.name));
  if (node.scale_up != ScaleUp::switched && node.switches > 0)
    reader.fail("switches", "only where scale_up is \"switched\"");
  return node;
}

}  // namespace shunt
