#include <shunt/bench/doctor.h>

#include <dlfcn.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <string_view>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <shunt/bench/placement.h>
#include <shunt/core/host.h>
#include <shunt/core/statistics.h>
#include <shunt/pack/kernels.h>
#include <shunt/transport/launch.h>

#include "probe.h"

extern char** environ;  // NOLINT: the one way to see all variables

namespace shunt::bench {
namespace {

struct Library {
  const char* name;
  const char* use;
  std::vector<const char*> sonames;
};

const std::vector<Library>& libraries() {
  static const std::vector<Library> known{
      {"MPI", "transport mpi", {"libmpi.so.40", "libmpich.so.12", "libmpi.so"}},
      {"libfabric", "transport ofi", {"libfabric.so.1"}},
      {"UCX", "used by MPI libraries", {"libucp.so.0"}},
      {"CUDA driver", "transport cuda_ipc, CUDA kernels", {"libcuda.so.1"}},
      {"CUDA runtime",
       "CUDA kernels",
       {"libcudart.so.12", "libcudart.so.13", "libcudart.so.11.0", "libcudart.so"}},
      {"NCCL", "transport nccl", {"libnccl.so.2"}},
      {"NVSHMEM",
       "transport nvshmem",
       {"libnvshmem_host.so.3", "libnvshmem_host.so.2", "libnvshmem_host.so"}},
      {"gloo", "method simd/gloo", {"libgloo.so.0", "libgloo.so"}},
      {"torch", "method torch, training", {"libtorch_cpu.so", "libtorch.so", "libtorch_cpu.so.1.13"}},
  };
  return known;
}

/// Name under which the loader finds a library; empty where it does not. Nothing of it is used.
std::string find_library(const std::vector<const char*>& sonames) {
  for (const char* soname : sonames)
    if (void* handle = dlopen(soname, RTLD_LAZY | RTLD_LOCAL); handle != nullptr) {
      dlclose(handle);
      return soname;
    }
  return {};
}

Record host_record() {
  const HostInfo host = read_host_info();
  Record record("host");
  record.set("hostname", host.hostname)
      .set("cpu", host.cpu_model)
      .set("cpu_vendor", host.cpu_vendor)
      .set("cpu_features", host.cpu_features)
      .set("kernel", host.kernel)
      .set("cores", std::int64_t{host.cores})
      .set("l2_bytes", host.l2_bytes)
      .set("l3_bytes", host.l3_bytes)
      .set("memory_total_bytes", host.memory_total_bytes)
      .set("memory_available_bytes", host.memory_available_bytes)
      .set("transparent_hugepages", host.transparent_hugepages)
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
  std::vector<Record> records{host_record(), kernel_record(), placement_record()};
  for (const TransportInfo& info : transport_registry()) {
    Record record("transport");
    record.set("name", info.name).set("available", info.available).set("reason", info.reason);
    records.push_back(std::move(record));
  }
  for (const Library& library : libraries()) {
    const std::string found = find_library(library.sonames);
    Record record("library");
    record.set("name", library.name)
        .set("use", library.use)
        .set("built_in", false)
        .set("present", !found.empty())
        .set("soname", found);
    records.push_back(std::move(record));
  }
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string_view variable(*entry);
    if (!variable.starts_with("SHUNT_")) continue;
    const std::size_t equals = std::min(variable.find('='), variable.size());
    Record record("environment");
    record.set("name", std::string(variable.substr(0, equals)))
        .set("value", std::string(variable.substr(std::min(equals + 1, variable.size()))));
    records.push_back(std::move(record));
  }
  return records;
}

std::string format_examination(const std::vector<Record>& records) {
  std::string text;
  std::string last;
  for (const Record& record : records) {
    const std::string kind = text_of(record, "record");
    if (kind != last) {
      if (kind == "transport") text += "\ntransports\n";
      if (kind == "library") text += "\nlibraries\n";
      if (kind == "environment") text += "\nenvironment\n";
    }
    last = kind;
    if (kind == "host") {
      text +=
          fmt::format("cpu              {} ({})\n", text_of(record, "cpu"), text_of(record, "cpu_vendor"));
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
      text +=
          fmt::format("  {:<14} not built in ({}); {}\n", text_of(record, "name"), text_of(record, "use"),
                      flag_of(record, "present") ? "present on this machine as " + text_of(record, "soname")
                                                 : "not found on this machine");
    } else if (kind == "environment") {
      text += fmt::format("  {}={}\n", text_of(record, "name"), text_of(record, "value"));
    }
  }
  return text;
}

}  // namespace shunt::bench
