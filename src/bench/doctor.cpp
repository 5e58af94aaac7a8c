#include <shunt/bench/doctor.h>

#include <dlfcn.h>
#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <shunt/bench/method.h>
#include <shunt/bench/placement.h>
#include <shunt/core/child.h>
#include <shunt/core/host.h>
#include <shunt/core/record.h>
#include <shunt/core/statistics.h>
#include <shunt/pack/cuda.h>
#include <shunt/pack/kernels.h>
#include <shunt/transport/launch.h>

#include "doctor_gpu.h"
#include "doctor_launch.h"
#include "probe.h"

namespace shunt::bench {
namespace {

using namespace std::chrono_literals;

/// For one library on a slow file system; those of a training stack have gigabytes.
constexpr auto kLoadTime = 30000ms;

struct Library {
  const char* name;
  const char* use;
  std::vector<const char*> sonames;
  const char* part = "";  ///< Transport or method that is in this build where the library is
  std::string (*version)(void*) = nullptr;  ///< From the loaded library
};

/// The function `name` of a library, or null.
template <class Function>
Function* find_function(void* library, const char* name) {
  return reinterpret_cast<Function*>(dlsym(library, name));
}

std::string mpi_version(void* library) {
  // Allowed before MPI_Init. The longest text of any implementation known is 8192 bytes.
  auto* const ask = find_function<int(char*, int*)>(library, "MPI_Get_library_version");
  if (ask == nullptr) return {};
  std::vector<char> text(16384);
  int length = 0;
  if (ask(text.data(), &length) != 0) return {};
  const std::string version(text.data());
  return version.substr(0, version.find_first_of(",\n"));
}

std::string libfabric_version(void* library) {
  auto* const ask = find_function<std::uint32_t()>(library, "fi_version");
  return ask == nullptr ? "" : fmt::format("{}.{}", ask() >> 16U, ask() & 0xffffU);
}

std::string ucx_version(void* library) {
  auto* const ask = find_function<void(unsigned*, unsigned*, unsigned*)>(library, "ucp_get_version");
  unsigned parts[3] = {};
  if (ask == nullptr) return {};
  ask(&parts[0], &parts[1], &parts[2]);
  return fmt::format("{}.{}.{}", parts[0], parts[1], parts[2]);
}

std::string nccl_version(void* library) {
  auto* const ask = find_function<int(int*)>(library, "ncclGetVersion");
  int number = 0;
  if (ask == nullptr || ask(&number) != 0) return {};
  return fmt::format("{}.{}.{}", number / 10000, number / 100 % 100, number % 100);
}

std::string nvshmem_version(void* library) {
  auto* const ask = find_function<void(int*, int*, int*)>(library, "nvshmemx_vendor_get_version_info");
  int parts[3] = {};
  if (ask == nullptr) return {};
  ask(&parts[0], &parts[1], &parts[2]);
  return fmt::format("{}.{}.{}", parts[0], parts[1], parts[2]);
}

const std::vector<Library>& libraries() {
  static const std::vector<Library> known{
      {"MPI", "transport mpi", {"libmpi.so.40", "libmpich.so.12", "libmpi.so"}, "mpi", mpi_version},
      {"libfabric", "transport ofi", {"libfabric.so.1"}, "ofi", libfabric_version},
      {"UCX", "used by MPI libraries", {"libucp.so.0"}, "", ucx_version},
      {"CUDA driver", "transport cuda_ipc, CUDA kernels", {"libcuda.so.1"}, "cuda_ipc"},
      {"CUDA runtime",
       "CUDA kernels",
       {"libcudart.so.12", "libcudart.so.13", "libcudart.so.11.0", "libcudart.so"}},
      {"NCCL", "transport nccl", {"libnccl.so.2"}, "nccl", nccl_version},
      {"NVSHMEM",
       "transport nvshmem",
       {"libnvshmem_host.so.3", "libnvshmem_host.so.2", "libnvshmem_host.so"},
       "nvshmem",
       nvshmem_version},
      {"gloo", "method simd/gloo", {"libgloo.so.0", "libgloo.so"}, "simd/gloo"},
      {"torch", "method torch, training", {"libtorch_cpu.so", "libtorch.so", "libtorch_cpu.so.1.13"}},
  };
  return known;
}

/// Whether the build has what the transport or method of that name needs, whether or not it can run now.
bool built_in(std::string_view part) {
  for (const TransportInfo& info : transport_registry())
    if (info.name == part) return info.reason.find("this build has no") == std::string::npos;
  for (const MethodSpec& spec : alltoall_methods())
    if (spec.name == part) return spec.unavailable.find("this build has no") == std::string::npos;
  return false;
}

Record library_record(const Library& library) {
  Record record("library");
  record.set("name", library.name).set("use", library.use).set("built_in", built_in(library.part));
  // Some hold memory or start threads as soon as they are loaded, and one of a broken installation may crash.
  const std::optional<std::string> found = ask_in_child(
      [&]() -> std::string {
        for (const char* soname : library.sonames)
          if (void* handle = dlopen(soname, RTLD_LAZY | RTLD_LOCAL); handle != nullptr)
            return fmt::format("{}\n{}", soname, library.version == nullptr ? "" : library.version(handle));
        return {};
      },
      kLoadTime);
  const std::string text = found.value_or("");
  const std::size_t line = std::min(text.find('\n'), text.size());
  record.set("present", !text.empty())
      .set("soname", text.substr(0, line))
      .set("version", text.substr(std::min(line + 1, text.size())));
  if (!found.has_value()) record.set("reason", "loading it crashes or takes longer than 30 s");
  return record;
}

Record host_record() {
  const HostInfo host = read_host_info();
  Record record("host");
  record.set("hostname", host.hostname);
  set_host_fields(record, host);
  record.set("transparent_hugepages", host.transparent_hugepages)
      .set("shmem_hugepages", host.shmem_hugepages)
      .set("hugetlb_pages_free", host.hugetlb_pages_free);
  rlimit locked{};
  if (getrlimit(RLIMIT_MEMLOCK, &locked) == 0)
    record.set("memlock_bytes", locked.rlim_cur == RLIM_INFINITY
                                    ? std::int64_t{-1}
                                    : static_cast<std::int64_t>(locked.rlim_cur));
  return record;
}

Record kernel_record() {
  std::vector<std::string> tables;
  for (const Isa isa : available_isas()) tables.emplace_back(isa_name(isa));
  Record record("kernels");
  record.set("tables", tables).set("used", tables.empty() ? "" : tables.back());
  return record;
}

/// Asked in a child: a driver keeps threads and memory.
Record gpu_kernel_record() {
  const std::string reason = ask_in_child(cuda::unavailable_reason, kLoadTime)
                                 .value_or("asking the CUDA driver crashes or takes longer than 30 s");
  Record record("gpu_kernels");
  return record.set("available", reason.empty()).set("reason", reason);
}

Record placement_record() {
  Record record("placement");
  std::vector<double> round_trips = survey_round_trips(20, std::chrono::microseconds(1000));
  if (round_trips.empty())
    return record.set("status", "skipped")
        .set("reason", "needs two cores and a transport with shared memory");
  const SampleSummary summary = summarize(round_trips);
  const PlacementThresholds thresholds =
      refine_thresholds(vendor_thresholds(read_host_info().cpu_vendor), round_trips);
  record.set("status", "ok")
      .set("round_trip_median_ns", summary.median)
      .set("round_trip_min_ns", summary.min)
      .set("round_trip_max_ns", summary.max)
      .set("class", placement_label(summary.median, thresholds))
      .set("near_below_ns", thresholds.near_ns)
      .set("same_l3_below_ns", thresholds.same_l3_ns);
  return record;
}

std::string text_of(const Record& record, std::string_view key) {
  const RecordValue* value = record.find(key);
  if (value == nullptr) return "?";
  if (const auto* text = std::get_if<std::string>(value)) return text->empty() ? "not known" : *text;
  if (const auto* number = std::get_if<std::int64_t>(value)) return fmt::format("{}", *number);
  if (const auto* number = std::get_if<double>(value)) return fmt::format("{:.0f}", *number);
  if (const auto* flag = std::get_if<bool>(value)) return *flag ? "yes" : "no";
  if (const auto* list = std::get_if<std::vector<std::string>>(value))
    return fmt::format("{}", fmt::join(*list, " "));
  return "?";
}

std::string bytes_of(const Record& record, std::string_view key) {
  const RecordValue* value = record.find(key);
  const auto* bytes = value == nullptr ? nullptr : std::get_if<std::int64_t>(value);
  if (bytes == nullptr || *bytes == 0) return "not known";
  return *bytes < 0 ? "unlimited" : format_bytes(*bytes);
}

bool flag_of(const Record& record, std::string_view key) {
  const RecordValue* value = record.find(key);
  const auto* flag = value == nullptr ? nullptr : std::get_if<bool>(value);
  return flag != nullptr && *flag;
}

}  // namespace

std::vector<Record> examine_machine() {
  std::vector<Record> records{host_record(), kernel_record(), gpu_kernel_record(), placement_record()};
  for (const TransportInfo& info : transport_registry()) {
    Record record("transport");
    record.set("name", info.name).set("available", info.available).set("reason", info.reason);
    records.push_back(std::move(record));
  }
  for (Record& record : examine_gpus()) records.push_back(std::move(record));
  for (Record& record : examine_fabric()) records.push_back(std::move(record));
  for (Record& record : examine_launch()) records.push_back(std::move(record));
  for (const Library& library : libraries()) records.push_back(library_record(library));
  for (const MethodSpec& spec : alltoall_methods()) {
    if (spec.unavailable.empty()) continue;
    Record record("method");
    record.set("name", spec.name).set("available", false).set("reason", spec.unavailable);
    records.push_back(std::move(record));
  }
  for (Record& record : examine_environment()) records.push_back(std::move(record));
  return records;
}

std::string format_examination(const std::vector<Record>& records) {
  std::string text;
  std::string last;
  std::string provider;  // of the last line
  for (const Record& record : records) {
    const std::string kind = text_of(record, "record");
    if (kind != last) {
      if (kind == "transport") text += "\ntransports\n";
      if (kind == "gpu_part") text += "\nfor GPUs\n";
      if (kind == "provider") text += "\nproviders of transport ofi\n";
      if (kind == "launch") text += "\nlaunching\n";
      if (kind == "library") text += "\nlibraries\n";
      if (kind == "method") text += "\nmethods of shunt bench alltoall that are missing\n";
      if (kind == "environment") text += "\nenvironment\n";
    }
    last = kind;
    if (kind == "host") {
      text += fmt::format("cpu              {} ({})\n", text_of(record, "cpu_model"),
                          text_of(record, "cpu_vendor"));
      text += fmt::format("features         {}\n", text_of(record, "cpu_features"));
      text += fmt::format("cores            {}; L2 {} per core, L3 {}\n", text_of(record, "cores"),
                          bytes_of(record, "l2_bytes"), bytes_of(record, "l3_bytes"));
      text += fmt::format("kernel           {}\n", text_of(record, "kernel"));
      text += fmt::format("memory           {}, {} available\n", bytes_of(record, "memory_total_bytes"),
                          bytes_of(record, "memory_available_bytes"));
      text += fmt::format("huge pages       transparent: {}; shared memory: {}; reserved and free: {}\n",
                          text_of(record, "transparent_hugepages"), text_of(record, "shmem_hugepages"),
                          text_of(record, "hugetlb_pages_free"));
      text += fmt::format("locked memory    {}\n", bytes_of(record, "memlock_bytes"));
    } else if (kind == "kernels") {
      text += fmt::format("kernel tables    {}; {} is used\n", text_of(record, "tables"),
                          text_of(record, "used"));
    } else if (kind == "gpu_kernels") {
      text +=
          fmt::format("GPU kernels      {}\n",
                      flag_of(record, "available") ? "available" : "missing: " + text_of(record, "reason"));
    } else if (kind == "placement") {
      if (text_of(record, "status") == "ok")
        text += fmt::format("core to core     {} ns round trip ({} to {}): {}\n",
                            text_of(record, "round_trip_median_ns"), text_of(record, "round_trip_min_ns"),
                            text_of(record, "round_trip_max_ns"), text_of(record, "class"));
      else
        text += fmt::format("core to core     not measured: {}\n", text_of(record, "reason"));
    } else if (kind == "transport") {
      text += fmt::format("  {:<14} {}: {}\n", text_of(record, "name"),
                          flag_of(record, "available") ? "available" : "missing", text_of(record, "reason"));
    } else if (kind == "library") {
      const bool versioned = text_of(record, "version") != "not known";
      text +=
          fmt::format("  {:<14} {} ({}); {}{}\n", text_of(record, "name"),
                      flag_of(record, "built_in") ? "built in" : "not built in", text_of(record, "use"),
                      flag_of(record, "present") ? "present on this machine as " + text_of(record, "soname")
                      : record.find("reason") != nullptr ? text_of(record, "reason")
                                                         : "not found on this machine",
                      versioned ? ", " + text_of(record, "version") : "");
    } else if (kind == "gpu_part" || kind == "gpu") {
      text += format_gpus({record});
    } else if (kind == "provider") {
      // All addresses of a provider in one line.
      const std::string name = text_of(record, "name");
      if (name == provider)
        text.insert(text.size() - 1, ", " + text_of(record, "address"));
      else
        text +=
            fmt::format("  {:<14} {}: {}\n", name, text_of(record, "version"), text_of(record, "address"));
      provider = name;
    } else if (kind == "launch") {
      if (text_of(record, "status") == "ok")
        text += fmt::format("  {:<14} {}\n", "started", text_of(record, "meaning"));
      else
        text += fmt::format("  {:<14} not possible: {}\n", "started", text_of(record, "reason"));
      if (!text_of(record, "variables").empty())
        text += fmt::format("  {:<14} {}\n", "because of", text_of(record, "variables"));
    } else if (kind == "slurm") {
      text +=
          fmt::format("  {:<14} {}{}\n", "Slurm", text_of(record, "srun"),
                      flag_of(record, "in_job") ? "; in job " + text_of(record, "job_id") : "; in no job");
    } else if (kind == "namespaces") {
      text += fmt::format("  {:<14} {}\n", "namespaces", text_of(record, "network"));
    } else if (kind == "method") {
      text += fmt::format("  {:<14} {}\n", text_of(record, "name"), text_of(record, "reason"));
    } else if (kind == "environment") {
      text += fmt::format("  {}={}\n", text_of(record, "name"), text_of(record, "value"));
    }
  }
  return text;
}

}  // namespace shunt::bench
