#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include <fmt/format.h>

#include <shunt/bench/results.h>
#include <shunt/core/error.h>

#include "archive.h"
#include "channel.h"

namespace shunt::bench {
namespace {

template <class Archive>
void visit(Archive& a, PointResult& r) {
  list(a, r.methods, [&a](MethodResult& m) {
    field(a, m.name);
    field(a, m.variant);
    field(a, m.kind);
    field(a, m.status);
    field(a, m.reason);
    field(a, m.correct);
    field(a, m.result_hash);
    for (double& us : m.cold_us) field(a, us);
    field(a, m.has_dispatch);
    field(a, m.has_combine);
    field(a, m.crossing);
    field(a, m.work);
    field(a, m.flops);
    list(a, m.phases, [&a](PhaseResult& p) {
      field(a, p.placement);
      field(a, p.phase);
      field(a, p.rounds);
      field(a, p.us);
    });
  });
  list(a, r.round_trips_ns, [&a](double& ns) { field(a, ns); });
  field(a, r.blocks_kept);
  field(a, r.blocks_dropped);
  field(a, r.seconds);
  field(a, r.dispatch_bytes);
  field(a, r.touch_bytes);
  field(a, r.combine_bytes);
  field(a, r.sparse_bytes);
  field(a, r.dense_bytes);
  field(a, r.required_rounds);
  field(a, r.nodes);
  field(a, r.transport);
  field(a, r.provider);
  field(a, r.clock);
}

}  // namespace

std::string encode_result(const PointResult& result) {
  PointResult copy = result;
  Writer writer;
  visit(writer, copy);
  return writer.bytes;
}

PointResult decode_result(std::string_view bytes, const Point& point) {
  PointResult result;
  Reader reader{bytes};
  visit(reader, result);
  result.point = point;
  return result;
}

Channel::Channel() : file_(memfd_create("shunt-bench-result", MFD_CLOEXEC)) {
  if (file_ < 0)
    throw Error(Errc::io, fmt::format("memfd_create for benchmark results: {}", std::strerror(errno)));
}

Channel::~Channel() {
  close(file_);
}

void Channel::write(const std::string& bytes) const {
  for (std::size_t done = 0; done < bytes.size();) {
    const ssize_t written = pwrite(file_, bytes.data() + done, bytes.size() - done, static_cast<off_t>(done));
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0)
      throw Error(Errc::io, fmt::format("handing over benchmark results: {}", std::strerror(errno)));
    done += static_cast<std::size_t>(written);
  }
}

std::string Channel::read() const {
  std::string bytes;
  char block[65536];
  for (;;) {
    const ssize_t got = pread(file_, block, sizeof block, static_cast<off_t>(bytes.size()));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) throw Error(Errc::io, fmt::format("reading benchmark results: {}", std::strerror(errno)));
    if (got == 0) return bytes;
    bytes.append(block, static_cast<std::size_t>(got));
  }
}

}  // namespace shunt::bench
