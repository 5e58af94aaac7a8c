#include "result_files.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <ctime>
#include <filesystem>

#include <fmt/format.h>

#include <shunt/core/error.h>

namespace shunt::bench {
namespace {

std::string default_table() {
  const std::time_t now = std::time(nullptr);
  std::tm local{};
  localtime_r(&now, &local);
  char stamp[32];
  std::strftime(stamp, sizeof stamp, "%Y%m%d_%H%M%S", &local);
  return fmt::format("data/{}_unified_moe_separated.tsv", stamp);
}

[[noreturn]] void refuse(const std::string& path, int reason) {
  throw Error(
      Errc::io,
      reason == EEXIST
          ? fmt::format("{} exists and is not overwritten; name another file with --tsv and --jsonl", path)
          : fmt::format("cannot write {}: {}", path, std::strerror(reason)));
}

}  // namespace

ResultFiles::ResultFiles(const std::string& tsv, const std::string& jsonl) {
  tsv_.path = tsv.empty() ? default_table() : tsv;
  jsonl_.path = jsonl.empty() ? std::filesystem::path(tsv_.path).replace_extension(".jsonl").string() : jsonl;
  if (tsv_.path == jsonl_.path)
    throw Error(Errc::invalid_argument,
                fmt::format("--tsv and --jsonl both name {}; allowed: two files", tsv_.path));
  try {
    tsv_.make();
    jsonl_.make();
  } catch (...) {
    tsv_.remove();
    throw;
  }
}

ResultFiles::~ResultFiles() {
  for (NewFile* file : {&tsv_, &jsonl_})
    if (keep_)
      close(file->descriptor);
    else
      file->remove();
}

void ResultFiles::begin(std::string_view table, std::string_view records) {
  tsv_.append(table);
  jsonl_.append(records);
}

void ResultFiles::add_point(std::string_view table, std::string_view records) {
  keep_ = true;
  tsv_.append(table);
  jsonl_.append(records);
}

void NewFile::make() {
  const std::filesystem::path folder = std::filesystem::path(path).parent_path();
  std::error_code error;
  if (!folder.empty()) std::filesystem::create_directories(folder, error);
  if (error)
    throw Error(Errc::io, fmt::format("folder {} cannot be made: {}", folder.string(), error.message()));
  descriptor = open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_APPEND | O_CLOEXEC, 0666);
  if (descriptor < 0) refuse(path, errno);
}

void NewFile::append(std::string_view text) const {
  while (!text.empty()) {
    const ssize_t written = write(descriptor, text.data(), text.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) refuse(path, errno);
    text.remove_prefix(static_cast<std::size_t>(written));
  }
  if (fsync(descriptor) != 0 && errno != EINVAL && errno != EROFS) refuse(path, errno);
}

void NewFile::remove() noexcept {
  if (descriptor < 0) return;
  close(descriptor);
  unlink(path.c_str());
  descriptor = -1;
}

}  // namespace shunt::bench
