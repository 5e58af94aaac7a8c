#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace shunt {

/// What carries bytes between two places.
enum class Fabric { nvlink, xgmi, pcie, infiniband, ethernet, efa };

/// As in presets and options: nvlink, xgmi, pcie, infiniband, ethernet, efa.
[[nodiscard]] const char* fabric_name(Fabric fabric) noexcept;

/// One kind of link, as its data sheet has it. Rates are decimal GB/s in one direction.
struct LinkSpec {
  std::string name;         ///< File name without .toml, for example "nvlink4"
  std::string description;  ///< One sentence
  std::string source;       ///< Where the numbers come from
  Fabric fabric = Fabric::pcie;
  double gb_per_s = 0;         ///< Raw. For NVLink and xGMI: of all links of one GPU together
  double usable_gb_per_s = 0;  ///< What large transfers reach; 0 where the source gives none
};

/// One network card (port), and the link behind it.
struct NicSpec {
  std::string name;
  std::string description;
  std::string source;
  LinkSpec link;
  double usable_gb_per_s =
      0;  ///< What large transfers reach; the link's where the card's source gives none; else 0
};

/// One GPU. Dense rates, without sparsity; 0 for a type that it does not compute in.
struct GpuSpec {
  std::string name;
  std::string description;
  std::string source;
  std::int64_t memory_bytes = 0;  ///< As the vendor names it; what programs can use is 1 to 2 % less
  double hbm_gb_per_s = 0;
  double bf16_tflops = 0;
  double fp8_tflops = 0;
  double fp4_tflops = 0;
  double int8_tops = 0;
  std::int32_t sms = 0;       ///< Multiprocessors or compute units; 0 where the source gives none
  std::int32_t dies = 1;      ///< Compute dies that one package joins to one device
  double power_w = 0;         ///< 0 where the source gives none
  bool has_scale_up = false;  ///< Whether GPUs reach each other by more than PCIe
  LinkSpec scale_up;          ///< NVLink or xGMI of this GPU; empty without has_scale_up
  LinkSpec pcie;              ///< To its host
};

/// How the GPUs of a scale-up domain reach each other.
enum class ScaleUp {
  none,       ///< only over PCIe
  full_mesh,  ///< a direct link for each pair, which a pair shares with nobody
  switched    ///< any pair at the full rate of a GPU
};

/// As in presets: none, full_mesh, switched.
[[nodiscard]] const char* scale_up_name(ScaleUp scale_up) noexcept;

/// One host: its GPUs, its network cards, and the scale-up domain that it is a part of.
struct NodeSpec {
  std::string name;
  std::string description;
  std::string source;
  GpuSpec gpu;
  std::int32_t gpus = 0;         ///< Of one host (operating system), for example 4 in an NVL72 tray
  std::int32_t domain_gpus = 0;  ///< Of one scale-up domain: gpus, or more where it spans hosts (72)
  ScaleUp scale_up = ScaleUp::none;
  std::int32_t switches = 0;  ///< NVSwitch chips (trays in a rack) of one domain; 0 without
  NicSpec nic;
  std::int32_t nics = 0;  ///< Of one host

  /// Network of one GPU in one direction, raw: gb_per_s of the link * nics / gpus.
  [[nodiscard]] double network_gb_per_s_per_gpu() const noexcept;
  /// Hosts of one scale-up domain.
  [[nodiscard]] std::int32_t domain_hosts() const noexcept { return domain_gpus / gpus; }
};

/// Directory with the folders gpus, nodes, nics and links: $SHUNT_HARDWARE where set, else found as
/// preset_directory() finds the model presets.
[[nodiscard]] std::string hardware_directory();

/// Names of the presets, sorted. Errors: Errc::io where the folder cannot be read.
[[nodiscard]] std::vector<std::string> list_gpus(const std::string& directory);
[[nodiscard]] std::vector<std::string> list_nodes(const std::string& directory);
[[nodiscard]] std::vector<std::string> list_nics(const std::string& directory);
[[nodiscard]] std::vector<std::string> list_links(const std::string& directory);

/// Each reads a preset by name, or by path where `name` ends in .toml; what it refers to (a node its GPU, a
/// GPU its links) is read from `directory` too, by name only.
/// Errors: Errc::invalid_argument suggests the nearest name and lists those there are; Errc::io with
///         file:line:column for TOML that does not parse, unknown keys, missing keys, values out of range
///         and references to presets that do not exist.
[[nodiscard]] GpuSpec find_gpu(const std::string& name, const std::string& directory);
[[nodiscard]] NodeSpec find_node(const std::string& name, const std::string& directory);
[[nodiscard]] NicSpec find_nic(const std::string& name, const std::string& directory);
[[nodiscard]] LinkSpec find_link(const std::string& name, const std::string& directory);

}  // namespace shunt
