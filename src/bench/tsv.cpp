#include <algorithm>
#include <cctype>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <shunt/bench/report.h>

namespace shunt::bench {
namespace {

constexpr const char* kNotRun = "NA";
constexpr const char* kUnits =
    "# shunt bench alltoall, format 1. E, E/tok, tok, dim: counts. *_total, *_lat, *_comm, *_pack, *_us: "
    "microseconds "
    "(median over iterations of the slowest rank). *_bw: GB/s, decimal, Sparse_bytes of one rank over *_lat. "
    "*_bytes: bytes. "
    "Speedup_*: ratio. NA: not run.";

std::string microseconds(double us) {
  return fmt::format("{:.3f}", us);
}

const PhaseResult* phase_of(const PointResult& result, std::string_view method, std::string_view placement,
                            std::string_view phase) {
  const MethodResult* found = result.best(method, placement);
  return found == nullptr ? nullptr : found->find(placement, phase);
}

/// Median of an inner phase; below 0 where it was not measured.
double inner(const PointResult& result, std::string_view method, std::string_view placement,
             std::string_view phase) {
  const PhaseResult* found = phase_of(result, method, placement, phase);
  return found == nullptr ? -1 : found->us.median;
}

/// total, lat, bw, comm and pack of one old method from the first of ours that ran.
struct OldColumns {
  std::string total = kNotRun, lat = kNotRun, bw = kNotRun, comm = kNotRun, pack = kNotRun;
  double total_us = -1;
};

OldColumns old_columns(const PointResult& result, std::string_view placement,
                       std::initializer_list<const char*> methods) {
  OldColumns columns;
  for (const char* method : methods) {
    const double comm = inner(result, method, placement, "exchange");
    const double unpack = inner(result, method, placement, "unpack");
    const double pack = inner(result, method, placement, "pack");
    if (comm < 0 || unpack < 0 || pack < 0) continue;
    const double lat = comm + unpack;
    columns.comm = microseconds(comm);
    columns.lat = microseconds(lat);
    columns.pack = microseconds(pack);
    columns.total_us = lat + pack;
    columns.total = microseconds(columns.total_us);
    columns.bw = fmt::format("{:.3f}", lat > 0 ? static_cast<double>(result.sparse_bytes) / lat / 1e3 : 0.0);
    break;
  }
  return columns;
}

std::string column_name(const std::string& method) {
  std::string name = method;
  for (char& c : name)
    if (std::isalnum(static_cast<unsigned char>(c)) == 0) c = '_';
  return name;
}

std::vector<std::string> own_methods(std::span<const PointResult> results) {
  std::vector<std::string> names;
  for (const PointResult& result : results)
    for (const MethodResult& method : result.methods)
      if (std::find(names.begin(), names.end(), method.name) == names.end()) names.push_back(method.name);
  return names;
}

constexpr const char* kPhases[] = {"dispatch", "touch", "combine", "total"};

}  // namespace

std::string tsv_header(std::span<const std::string> methods) {
  std::vector<std::string> header{"E",
                                  "E/tok",
                                  "tok",
                                  "dim",
                                  "CPU+Torch_total",
                                  "CPU+Torch_lat",
                                  "CPU+Torch_bw",
                                  "CPU+Torch_comm",
                                  "CPU_pack",
                                  "CPU+NVSHMEM_total",
                                  "CPU+NVSHMEM_lat",
                                  "CPU+NVSHMEM_bw",
                                  "CPU+NVSHMEM_comm",
                                  "Dense_lat",
                                  "Dense_bw",
                                  "Sparse_bytes",
                                  "Dense_bytes",
                                  "CUDA+Torch_total",
                                  "CUDA+Torch_lat",
                                  "CUDA+Torch_bw",
                                  "CUDA+Torch_comm",
                                  "CUDA_pack",
                                  "CUDA+NVSHMEM_total",
                                  "CUDA+NVSHMEM_lat",
                                  "CUDA+NVSHMEM_bw",
                                  "CUDA+NVSHMEM_comm",
                                  "Speedup_Torch",
                                  "Speedup_NVSHMEM"};
  for (const char* name : {"ranks", "dp_size", "preset", "routing", "in_dtype", "out_dtype", "placement"})
    header.emplace_back(name);
  for (const std::string& method : methods) {
    for (const char* phase : kPhases) header.push_back(fmt::format("{}_{}_us", column_name(method), phase));
    header.push_back(column_name(method) + "_rounds");
  }

  return fmt::format("{}\n{}\n", kUnits, fmt::join(header, "\t"));
}

std::string tsv_rows(const PointResult& result, std::span<const std::string> methods) {
  std::string text;
  for (const std::string& placement : result.placements()) {
    const Point& point = result.point;
    const OldColumns torch = old_columns(result, placement, {"torch", "cpu/nccl"});
    const OldColumns nvshmem = old_columns(result, placement, {"cpu/nvshmem"});
    const OldColumns cuda_torch = old_columns(result, placement, {"cuda/nccl"});
    const OldColumns cuda_nvshmem = old_columns(result, placement, {"cuda/nvshmem"});
    const OldColumns dense = old_columns(result, placement, {"dense"});
    const OldColumns scalar = old_columns(result, placement, {"scalar/alltoallv", "scalar/put"});
    const auto speedup = [](const OldColumns& cpu, const OldColumns& cuda) -> std::string {
      if (cpu.total_us < 0 || cuda.total_us <= 0) return kNotRun;
      return fmt::format("{:.3f}", cpu.total_us / cuda.total_us);
    };
    std::vector<std::string> row{fmt::format("{}", point.num_experts),
                                 fmt::format("{}", point.top_k),
                                 fmt::format("{}", point.tokens),
                                 fmt::format("{}", point.hidden),
                                 torch.total,
                                 torch.lat,
                                 torch.bw,
                                 torch.comm,
                                 torch.pack != kNotRun ? torch.pack : scalar.pack,
                                 nvshmem.total,
                                 nvshmem.lat,
                                 nvshmem.bw,
                                 nvshmem.comm,
                                 dense.lat,
                                 dense.bw,
                                 fmt::format("{}", result.sparse_bytes),
                                 fmt::format("{}", result.dense_bytes),
                                 cuda_torch.total,
                                 cuda_torch.lat,
                                 cuda_torch.bw,
                                 cuda_torch.comm,
                                 cuda_torch.pack,
                                 cuda_nvshmem.total,
                                 cuda_nvshmem.lat,
                                 cuda_nvshmem.bw,
                                 cuda_nvshmem.comm,
                                 speedup(torch, cuda_torch),
                                 speedup(nvshmem, cuda_nvshmem),
                                 fmt::format("{}", point.ranks),
                                 fmt::format("{}", point.dp_size),
                                 point.preset,
                                 point.routing_label,
                                 dtype_name(point.in_dtype),
                                 dtype_name(point.out_dtype),
                                 placement};
    for (const std::string& method : methods) {
      std::int64_t rounds = 0;
      for (const char* phase : kPhases) {
        const PhaseResult* found = phase_of(result, method, placement, phase);
        row.push_back(found == nullptr ? kNotRun : microseconds(found->us.median));
        if (found != nullptr) rounds = found->rounds;
      }
      row.push_back(fmt::format("{}", rounds));
    }
    text += fmt::format("{}\n", fmt::join(row, "\t"));
  }
  return text;
}

std::string format_tsv(std::span<const PointResult> results) {
  const std::vector<std::string> methods = own_methods(results);
  std::string text = tsv_header(methods);
  for (const PointResult& result : results) text += tsv_rows(result, methods);
  return text;
}

}  // namespace shunt::bench
