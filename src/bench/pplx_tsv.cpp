#include <fmt/format.h>

#include <shunt/bench/report.h>

namespace shunt::bench {
namespace {

/// mean, GB/s, bytes and standard deviation of a phase, by tabs; NA where it was not measured.
struct Cells {
  std::string three = "\tNA\tNA\tNA";
  std::string deviation = "\tNA";
};

Cells cells(const PointResult& result, const char* method, const char* name, std::int64_t bytes) {
  const std::string placement = result.main_placement();
  const MethodResult* const found = result.best(method, placement);
  const PhaseResult* const phase = found == nullptr ? nullptr : found->find(placement, name);
  if (phase == nullptr) return {};
  const double us = phase->us.mean;
  return {
      fmt::format("\t{:.3f}\t{:.3f}\t{}", us, us > 0 ? static_cast<double>(bytes) / us / 1e3 : 0.0, bytes),
      fmt::format("\t{:.3f}", phase->us.stddev)};
}

}  // namespace

std::string pplx_tsv_header() {
  std::string header =
      "# shunt bench alltoall, the columns of pplx-kernels' bench_all_to_all. *_lat, *_std: microseconds, "
      "mean and "
      "standard deviation over the iterations of the slowest rank. *_bw: GB/s, decimal, *_bytes of one rank "
      "over *_lat. "
      "Dispatch, Combine: shunt. Torch, NVSHMEM: one all-to-all of the padded tensor (dense/nccl, "
      "dense/nvshmem), without packing. NA: "
      "not run, or nothing measured but the whole, as in a graph.\n";
  header += "E\tE/tok\ttok\tdim";
  for (const char* name : {"Dispatch", "Combine", "Torch", "NVSHMEM"})
    header += fmt::format("\t{0}_lat\t{0}_bw\t{0}_bytes", name);
  for (const char* name : {"Dispatch", "Combine", "Torch", "NVSHMEM"})
    header += fmt::format("\t{}_std", name);
  return header + "\tranks\tin_dtype\tout_dtype\trouting\n";
}

std::string pplx_tsv_row(const PointResult& result) {
  const Point& point = result.point;
  const std::int64_t selections = point.tokens * point.top_k;
  const Cells all[] = {
      cells(result, "shunt", "dispatch", result.sparse_bytes),
      cells(result, "shunt", "combine", selections * point.hidden * dtype_bytes(point.out_dtype)),
      cells(result, "dense/nccl", "exchange", result.dense_bytes),
      cells(result, "dense/nvshmem", "exchange", result.dense_bytes)};
  std::string row = fmt::format("{}\t{}\t{}\t{}", point.num_experts, point.top_k, point.tokens, point.hidden);
  for (const Cells& one : all) row += one.three;
  for (const Cells& one : all) row += one.deviation;
  return row + fmt::format("\t{}\t{}\t{}\t{}\n", point.ranks, dtype_name(point.in_dtype),
                           dtype_name(point.out_dtype), point.routing_label);
}

}  // namespace shunt::bench
