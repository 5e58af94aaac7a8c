#include <shunt/core/record.h>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <ctime>

#include <fmt/format.h>

#include <shunt/core/error.h>
#include <shunt/core/host.h>

namespace shunt {
namespace {

/// Length of the UTF-8 sequence that starts at `at`; 0 where it is malformed (overlong, surrogate, cut
/// short).
std::size_t utf8_length(std::string_view text, std::size_t at) {
  const auto byte = [&](std::size_t i) {
    return at + i < text.size() ? static_cast<unsigned char>(text[at + i]) : 0U;
  };
  const auto continues = [&](std::size_t count) {
    for (std::size_t i = 1; i <= count; ++i)
      if ((byte(i) & 0xc0U) != 0x80U) return false;
    return true;
  };
  const unsigned lead = byte(0);
  if (lead < 0x80) return 1;
  if (lead >= 0xc2 && lead <= 0xdf) return continues(1) ? 2 : 0;
  if (lead >= 0xe0 && lead <= 0xef) {
    const bool overlong = lead == 0xe0 && byte(1) < 0xa0;
    const bool surrogate = lead == 0xed && byte(1) >= 0xa0;
    return continues(2) && !overlong && !surrogate ? 3 : 0;
  }
  if (lead >= 0xf0 && lead <= 0xf4) {
    const bool overlong = lead == 0xf0 && byte(1) < 0x90;
    const bool too_large = lead == 0xf4 && byte(1) >= 0x90;
    return continues(3) && !overlong && !too_large ? 4 : 0;
  }
  return 0;
}

void append(std::string& out, std::string_view text) {
  out += '"';
  for (std::size_t i = 0; i < text.size();) {
    const char c = text[i];
    const std::size_t length = utf8_length(text, i);
    if (length == 0) {
      out += "\\ufffd";
      ++i;
      continue;
    }
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (c == '\n') {
      out += "\\n";
    } else if (c == '\t') {
      out += "\\t";
    } else if (c == '\r') {
      out += "\\r";
    } else if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) {
      out += fmt::format("\\u{:04x}", static_cast<unsigned>(c));
    } else {
      out.append(text.substr(i, length));
    }
    i += length;
  }
  out += '"';
}

void append(std::string& out, const std::string& text) {
  append(out, std::string_view(text));
}
void append(std::string& out, std::monostate) {
  out += "null";
}
void append(std::string& out, bool value) {
  out += value ? "true" : "false";
}
void append(std::string& out, std::int64_t value) {
  out += std::to_string(value);
}

void append(std::string& out, double value) {
  if (!std::isfinite(value)) {
    out += "null";
    return;
  }
  char digits[32];
  const auto [end, error] = std::to_chars(digits, digits + sizeof digits, value);
  out.append(digits, end);
}

template <class T>
void append(std::string& out, const std::vector<T>& values) {
  out += '[';
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (i > 0) out += ',';
    append(out, values[i]);
  }
  out += ']';
}

/// The word as a POSIX shell would have to read it.
std::string shell_quoted(const std::string& word) {
  const auto plain = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
           std::strchr("_-+=./:,@%", c) != nullptr;
  };
  if (!word.empty() && std::all_of(word.begin(), word.end(), [&](char c) { return c != '\0' && plain(c); }))
    return word;
  std::string out = "'";
  for (const char c : word) {
    if (c == '\'')
      out += "'\\''";
    else
      out += c;
  }
  return out + "'";
}

std::string utc_now() {
  const std::time_t now = std::time(nullptr);
  std::tm parts{};
  gmtime_r(&now, &parts);
  char text[32];
  std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &parts);
  return text;
}

[[noreturn]] void fail_to_write(const std::string& path, int reason) {
  throw Error(Errc::io,
              reason == EEXIST
                  ? fmt::format("{} exists already; nothing is overwritten, name another file", path)
                  : fmt::format("cannot write {}: {}", path, std::strerror(reason)));
}

/// A file that is removed at the end, whatever happens.
struct TemporaryFile {
  std::string path;
  int descriptor = -1;
  TemporaryFile() = default;
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;
  ~TemporaryFile() {
    if (descriptor >= 0) close(descriptor);
    if (!path.empty()) unlink(path.c_str());
  }
};

}  // namespace

Record::Record(std::string_view kind) {
  set("record", std::string(kind));
}

Record& Record::set(std::string_view key, RecordValue value) {
  const auto at =
      std::find_if(fields_.begin(), fields_.end(), [&](const auto& entry) { return entry.first == key; });
  if (at != fields_.end())
    at->second = std::move(value);
  else
    fields_.emplace_back(std::string(key), std::move(value));
  return *this;
}

const RecordValue* Record::find(std::string_view key) const noexcept {
  for (const auto& entry : fields_)
    if (entry.first == key) return &entry.second;
  return nullptr;
}

std::string Record::to_json() const {
  std::string out = "{";
  for (const auto& [key, value] : fields_) {
    if (out.size() > 1) out += ',';
    append(out, std::string_view(key));
    out += ':';
    std::visit([&out](const auto& held) { append(out, held); }, value);
  }
  out += '}';
  return out;
}

void set_host_fields(Record& record, const HostInfo& host) {
  record.set("cpu_model", host.cpu_model)
      .set("cpu_vendor", host.cpu_vendor)
      .set("cpu_features", host.cpu_features)
      .set("kernel", host.kernel)
      .set("cores", std::int64_t{host.cores})
      .set("l2_bytes", host.l2_bytes)
      .set("l3_bytes", host.l3_bytes)
      .set("memory_total_bytes", host.memory_total_bytes)
      .set("memory_available_bytes", host.memory_available_bytes);
}

Record context_record(const std::vector<std::string>& command) {
  const HostInfo host = read_host_info();
  std::string line;
  for (const std::string& word : command) line += (line.empty() ? "" : " ") + shell_quoted(word);
  Record record("context");
  record.set("format", std::int64_t{1})
      .set("version", version())
      .set("git_revision", git_revision())
      .set("date", utc_now())
      .set("host", host.hostname);
  set_host_fields(record, host);
#if defined(__clang__)
  record.set("compiler", "clang " __clang_version__);
#else
  record.set("compiler", "gcc " __VERSION__);
#endif
  record.set("command", line);
  return record;
}

void write_new_file(const std::string& path, std::string_view text) {
  struct stat existing {};
  if (lstat(path.c_str(), &existing) == 0) fail_to_write(path, EEXIST);

  TemporaryFile file;
  for (int attempt = 0; file.descriptor < 0; ++attempt) {
    const std::string name = fmt::format("{}.{}-{}.part", path, getpid(), attempt);
    file.descriptor = open(name.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (file.descriptor >= 0)
      file.path = name;
    else if (errno != EEXIST || attempt == 100)
      fail_to_write(path, errno == EEXIST ? EBUSY : errno);
  }
  while (!text.empty()) {
    const ssize_t written = write(file.descriptor, text.data(), text.size());
    if (written < 0) {
      if (errno == EINTR) continue;
      fail_to_write(path, errno);
    }
    text.remove_prefix(static_cast<std::size_t>(written));
  }
  if (fsync(file.descriptor) != 0 && errno != EINVAL && errno != EROFS) fail_to_write(path, errno);
  if (renameat2(AT_FDCWD, file.path.c_str(), AT_FDCWD, path.c_str(), RENAME_NOREPLACE) == 0) {
    file.path.clear();
    return;
  }
  // Some file systems know no rename without replacing; a hard link refuses an existing name just as well.
  if (errno != EINVAL && errno != ENOSYS) fail_to_write(path, errno);
  if (link(file.path.c_str(), path.c_str()) != 0) fail_to_write(path, errno);
}

}  // namespace shunt
