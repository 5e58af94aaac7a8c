#include "doctor_gpu.h"

#include <dlfcn.h>

#include <algorithm>
#include <cctype>
#include <charconv>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <sstream>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <shunt/core/child.h>
#include <shunt/core/host.h>

namespace shunt::bench {
namespace {

constexpr auto kPatience = std::chrono::seconds(30);

// Names and numbers of the driver's interface, which a build without CUDA has no header for.
constexpr int kVersionMajor = 75;
constexpr int kVersionMinor = 76;
constexpr int kExportsFiles = 103;  // CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED
constexpr int kDmaBuf = 124;        // CU_DEVICE_ATTRIBUTE_DMA_BUF_SUPPORTED

template <class Function>
Function* find_function(void* library, const char* name) {
  return reinterpret_cast<Function*>(dlsym(library, name));
}

/// In a child: lines for parse_driver_answer().
std::string ask_driver() {
  void* library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) return "none\tlibcuda.so.1, the driver's library, is not found\n";
  auto* const init = find_function<int(unsigned)>(library, "cuInit");
  auto* const version = find_function<int(int*)>(library, "cuDriverGetVersion");
  auto* const count = find_function<int(int*)>(library, "cuDeviceGetCount");
  auto* const name = find_function<int(char*, int, int)>(library, "cuDeviceGetName");
  auto* const memory = find_function<int(std::size_t*, int)>(library, "cuDeviceTotalMem_v2");
  auto* const attribute = find_function<int(int*, int, int)>(library, "cuDeviceGetAttribute");
  auto* const reaches = find_function<int(int*, int, int)>(library, "cuDeviceCanAccessPeer");
  if (init == nullptr || version == nullptr || count == nullptr || name == nullptr || memory == nullptr ||
      attribute == nullptr || reaches == nullptr)
    return "none\tlibcuda.so.1 is older than CUDA 11\n";
  int number = 0;
  std::string text;
  if (version(&number) == 0) text += fmt::format("version\t{}\n", number);
  if (const int error = init(0); error != 0)
    return text + fmt::format("none\tthe driver does not begin (cuInit: CUDA error {})\n", error);
  int devices = 0;
  if (count(&devices) != 0 || devices == 0) return text + "none\tthe driver shows no GPU\n";
  const auto value = [&](int which, int device) {
    int found = 0;
    return attribute(&found, which, device) == 0 ? found : 0;
  };
  for (int device = 0; device < devices; ++device) {
    char label[256] = "?";
    std::size_t bytes = 0;
    static_cast<void>(name(label, sizeof label, device));
    static_cast<void>(memory(&bytes, device));
    text += fmt::format("gpu\t{}\t{}\t{}\t{}\t{}\t{}", device, label, bytes,
                        10 * value(kVersionMajor, device) + value(kVersionMinor, device),
                        value(kExportsFiles, device), value(kDmaBuf, device));
    for (int peer = 0; peer < devices; ++peer) {
      int can = 0;
      if (peer != device && reaches(&can, device, peer) == 0 && can != 0) text += fmt::format("\t{}", peer);
    }
    text += '\n';
  }
  return text;
}

std::string read_text(const std::string& path) {
  std::ifstream file(path);
  std::ostringstream text;
  text << file.rdbuf();
  return file ? text.str() : std::string{};
}

std::vector<std::string_view> split(std::string_view text, char at) {
  std::vector<std::string_view> parts;
  while (true) {
    const std::size_t end = text.find(at);
    parts.push_back(text.substr(0, end));
    if (end == std::string_view::npos) return parts;
    text.remove_prefix(end + 1);
  }
}

template <class Number>
bool parse(std::string_view text, Number& to) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), to);
  return error == std::errc{} && end == text.data() + text.size();
}

/// Names below a folder of /sys; empty where it is not there.
std::vector<std::string> names_in(const std::string& folder) {
  std::vector<std::string> names;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(folder, error))
    names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

/// The kernel driver of a network card, such as mlx5_core or efa.
std::string driver_of(const std::string& card) {
  std::error_code error;
  return std::filesystem::read_symlink(card + "/device/driver", error).filename().string();
}

Record part(const char* name, bool found, const std::string& detail, const char* cost) {
  Record record("gpu_part");
  return record.set("name", name).set("found", found).set("detail", detail).set("cost", found ? "" : cost);
}

Record ibgda_record(const std::string& parameters, const std::vector<std::string>& cards, bool gdrcopy) {
  std::vector<std::string> missing;
  if (cards.empty()) missing.emplace_back("a ConnectX network card (mlx5)");
  if (parse_module_parameter(parameters, "EnableStreamMemOPs") != "1")
    missing.emplace_back("NVreg_EnableStreamMemOPs=1");
  // With GDRCopy a CPU thread can ring the cards' doorbells in place of the GPU.
  const std::string mapping = parse_module_parameter(parameters, "RegistryDwords");
  if (mapping.find("PeerMappingOverride=1") == std::string::npos && !gdrcopy)
    missing.emplace_back("NVreg_RegistryDwords=\"PeerMappingOverride=1;\" or GDRCopy");
  return part("IBGDA", missing.empty(),
              missing.empty() ? fmt::format("{}", fmt::join(cards, " "))
                              : fmt::format("{}", fmt::join(missing, ", ")),
              "kernels of NVSHMEM hand their puts to a CPU thread (IBRC), some microseconds more for each");
}

std::string text_of(const Record& record, std::string_view key) {
  const RecordValue* value = record.find(key);
  if (value == nullptr) return {};
  if (const auto* text = std::get_if<std::string>(value)) return *text;
  if (const auto* number = std::get_if<std::int64_t>(value)) return fmt::format("{}", *number);
  return {};
}

bool flag_of(const Record& record, std::string_view key) {
  const RecordValue* value = record.find(key);
  const auto* flag = value == nullptr ? nullptr : std::get_if<bool>(value);
  return flag != nullptr && *flag;
}

}  // namespace

std::optional<DriverAnswer> parse_driver_answer(std::string_view text) {
  DriverAnswer answer;
  for (const std::string_view line : split(text, '\n')) {
    if (line.empty()) continue;
    const std::vector<std::string_view> fields = split(line, '\t');
    if (fields[0] == "version" && fields.size() == 2) {
      if (!parse(fields[1], answer.version)) return std::nullopt;
    } else if (fields[0] == "none" && fields.size() == 2) {
      answer.reason = fields[1];
    } else if (fields[0] == "gpu" && fields.size() >= 7) {
      GpuFacts gpu;
      int exports = 0;
      int dma_buf = 0;
      if (!parse(fields[1], gpu.ordinal) || !parse(fields[3], gpu.memory_bytes) ||
          !parse(fields[4], gpu.capability) || !parse(fields[5], exports) || !parse(fields[6], dma_buf))
        return std::nullopt;
      gpu.name = fields[2];
      gpu.exports_memory = exports != 0;
      gpu.dma_buf = dma_buf != 0;
      for (std::size_t at = 7; at < fields.size(); ++at) {
        gpu.peers.push_back(0);
        if (!parse(fields[at], gpu.peers.back())) return std::nullopt;
      }
      answer.gpus.push_back(std::move(gpu));
    } else {
      return std::nullopt;
    }
  }
  if (answer.gpus.empty() && answer.reason.empty()) return std::nullopt;
  return answer;
}

std::string parse_module_version(std::string_view text) {
  // "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build ...": the first number with a dot.
  for (const std::string_view word : split(text.substr(0, text.find('\n')), ' ')) {
    const auto good = [](char c) { return std::isdigit(static_cast<unsigned char>(c)) != 0 || c == '.'; };
    if (word.find('.') != std::string_view::npos && std::all_of(word.begin(), word.end(), good))
      return std::string(word);
  }
  return {};
}

std::string parse_module_parameter(std::string_view text, std::string_view name) {
  for (const std::string_view line : split(text, '\n')) {
    const std::size_t colon = line.find(": ");
    if (colon == std::string_view::npos || line.substr(0, colon) != name) continue;
    std::string_view value = line.substr(colon + 2);
    if (value.size() >= 2 && value.front() == '"' && value.back() == '"')
      value = value.substr(1, value.size() - 2);
    return std::string(value);
  }
  return {};
}

std::vector<Record> gpu_records(const std::string& root, const DriverAnswer& answer) {
  const auto exists = [&](const char* path) {
    std::error_code error;
    return std::filesystem::exists(root + path, error);
  };
  std::vector<Record> records;
  const std::string module = parse_module_version(read_text(root + "/proc/driver/nvidia/version"));
  std::string driver = module.empty() ? "no kernel module is loaded" : "kernel module " + module;
  if (answer.version > 0)
    driver += fmt::format(", for CUDA up to {}.{}", answer.version / 1000, answer.version % 1000 / 10);
  if (!answer.reason.empty()) driver += "; " + answer.reason;
  records.push_back(part("NVIDIA driver", !answer.gpus.empty(), driver,
                         "nothing runs on GPUs; transports shm, mpi and ofi and everything on the CPU do"));

  const std::string parameters = read_text(root + "/proc/driver/nvidia/params");
  const std::string cards_at = root + "/sys/class/infiniband/";
  std::vector<std::string> mellanox;
  std::vector<std::string> amazon;
  for (const std::string& card : names_in(cards_at)) {
    const std::string driven_by = driver_of(cards_at + card);
    if (driven_by == "mlx5_core") mellanox.push_back(card);
    if (driven_by == "efa") amazon.push_back(card);
  }
  const bool gdrcopy = exists("/dev/gdrdrv") || exists("/sys/module/gdrdrv");
  records.push_back(
      part("GDRCopy", gdrcopy, gdrcopy ? "kernel module gdrdrv" : "kernel module gdrdrv is not loaded",
           "CPUs reach GPU memory by copies: small messages of UCX and NVSHMEM's proxy take microseconds "
           "longer"));
  bool dma_buf = false;
  for (const GpuFacts& gpu : answer.gpus) dma_buf = dma_buf || gpu.dma_buf;
  const bool peermem = exists("/sys/module/nvidia_peermem") || exists("/sys/module/nv_peer_mem");
  records.push_back(
      part("GPUDirect RDMA", peermem || dma_buf,
           peermem   ? "kernel module nvidia_peermem"
           : dma_buf ? "DMA-BUF of the driver"
                     : "neither nvidia_peermem nor DMA-BUF",
           "network cards cannot reach GPU memory: what crosses nodes goes through host memory"));
  records.push_back(ibgda_record(parameters, mellanox, gdrcopy));
  records.push_back(part("EFA", !amazon.empty(),
                         amazon.empty() ? "no card of it" : fmt::format("{}", fmt::join(amazon, " ")),
                         "of use on AWS only: without it NVSHMEM and NCCL go over TCP there"));
  for (const GpuFacts& gpu : answer.gpus) {
    Record record("gpu");
    record.set("ordinal", std::int64_t{gpu.ordinal})
        .set("name", gpu.name)
        .set("memory_bytes", gpu.memory_bytes)
        .set("compute_capability", fmt::format("{}.{}", gpu.capability / 10, gpu.capability % 10))
        .set("exports_memory", gpu.exports_memory)
        .set("dma_buf", gpu.dma_buf)
        .set("peers", fmt::format("{}", fmt::join(gpu.peers, ", ")));
    records.push_back(std::move(record));
  }
  return records;
}

std::vector<Record> examine_gpus(const std::string& root) {
  const std::optional<std::string> text = ask_in_child(ask_driver, kPatience);
  std::optional<DriverAnswer> answer = parse_driver_answer(text.value_or(""));
  if (!answer.has_value()) {
    answer.emplace();
    answer->reason = "asking it crashes or takes longer than 30 s";
  }
  return gpu_records(root, *answer);
}

std::string format_gpus(const std::vector<Record>& records) {
  std::string text;
  for (const Record& record : records) {
    const std::string name = text_of(record, "name");
    if (record.find("cost") != nullptr) {
      const std::string cost = text_of(record, "cost");
      text += fmt::format("  {:<14} {}: {}{}\n", name, flag_of(record, "found") ? "found" : "missing",
                          text_of(record, "detail"), cost.empty() ? "" : "; " + cost);
    } else if (record.find("peers") != nullptr) {
      const std::string peers = text_of(record, "peers");
      const RecordValue* bytes = record.find("memory_bytes");
      text += fmt::format(
          "  {:<14} {}, {}, compute capability {}; reaches {}{}\n", "GPU " + text_of(record, "ordinal"), name,
          format_bytes(std::get<std::int64_t>(*bytes)), text_of(record, "compute_capability"),
          peers.empty() ? "no other GPU's memory" : "the memory of GPU " + peers,
          flag_of(record, "exports_memory") ? "" : "; its memory cannot be shared between processes");
    }
  }
  return text;
}

}  // namespace shunt::bench
