#include <shunt/routing/npy.h>

#include <array>
#include <bit>
#include <cerrno>
#include <charconv>
#include <cmath>
#include <cstring>
#include <fstream>
#include <limits>
#include <optional>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <shunt/core/dtype.h>
#include <shunt/core/error.h>

#include "check.h"

static_assert(std::endian::native == std::endian::little, "npy data is used as it lies in the file");

namespace shunt {
namespace {

[[noreturn]] void fail_io(const std::string& path, const std::string& why) {
  throw Error(Errc::io, fmt::format("{}: {}", path, why));
}

/// The header of a .npy file: a Python dictionary literal with the keys descr, fortran_order and shape.
class HeaderParser {
 public:
  HeaderParser(const std::string& path, std::string_view text) : path_(path), text_(text) {}

  void parse(NpyArray& array) {
    bool has_descr = false;
    bool has_order = false;
    bool has_shape = false;
    expect('{');
    while (!accept('}')) {
      const std::string key = string();
      expect(':');
      if (key == "descr") {
        if (peek() == '[') fail("record types (descr is a list) are not supported");
        array.descr = string();
        has_descr = true;
      } else if (key == "fortran_order") {
        if (boolean()) fail("the array is in Fortran order; save it in C order (numpy.ascontiguousarray)");
        has_order = true;
      } else if (key == "shape") {
        array.shape = tuple();
        has_shape = true;
      } else {
        fail(fmt::format("unknown key \"{}\"; allowed are descr, fortran_order, shape", key));
      }
      if (!accept(',')) {
        expect('}');
        break;
      }
    }
    skip_space();
    if (at_ != text_.size()) fail("text after the closing brace");
    if (!has_descr || !has_order || !has_shape) fail("needs the keys descr, fortran_order and shape");
  }

 private:
  [[noreturn]] void fail(const std::string& why) const {
    fail_io(path_, fmt::format("header, character {}: {}", at_, why));
  }

  void skip_space() {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\n' || text_[at_] == '\t')) ++at_;
  }

  char peek() {
    skip_space();
    return at_ < text_.size() ? text_[at_] : '\0';
  }

  bool accept(char c) {
    if (peek() != c) return false;
    ++at_;
    return true;
  }

  void expect(char c) {
    if (!accept(c)) fail(fmt::format("expected '{}'", c));
  }

  std::string string() {
    const char quote = peek();
    if (quote != '\'' && quote != '"') fail("expected a string");
    const auto end = text_.find(quote, at_ + 1);
    if (end == std::string_view::npos) fail("a string does not end");
    std::string value(text_.substr(at_ + 1, end - at_ - 1));
    at_ = end + 1;
    return value;
  }

  bool boolean() {
    skip_space();
    for (const bool value : {true, false}) {
      const std::string_view word = value ? "True" : "False";
      if (text_.substr(at_).starts_with(word)) {
        at_ += word.size();
        return value;
      }
    }
    fail("expected True or False");
  }

  std::vector<std::int64_t> tuple() {
    std::vector<std::int64_t> values;
    expect('(');
    while (!accept(')')) {
      skip_space();
      std::int64_t value = 0;
      const char* begin = text_.data() + at_;
      const auto result = std::from_chars(begin, text_.data() + text_.size(), value);
      if (result.ec != std::errc{} || value < 0) fail("expected a size >= 0");
      at_ += static_cast<std::size_t>(result.ptr - begin);
      values.push_back(value);
      if (!accept(',')) {
        expect(')');
        break;
      }
    }
    return values;
  }

  const std::string& path_;
  std::string_view text_;
  std::size_t at_ = 0;
};

/// Bytes of one element of "<f4" and the like.
std::int64_t element_bytes(const std::string& path, const std::string& descr) {
  const char order = descr.empty() ? '\0' : descr[0];
  if (order == '>')
    fail_io(path, fmt::format("element type \"{}\" is big endian; save it as little endian", descr));
  const bool has_order = order == '<' || order == '|' || order == '=';
  const std::string_view rest = std::string_view(descr).substr(has_order ? 1 : 0);
  std::int64_t bytes = 0;
  if (rest.size() >= 2 && std::string_view("biufcV").find(rest[0]) != std::string_view::npos) {
    const auto result = std::from_chars(rest.data() + 1, rest.data() + rest.size(), bytes);
    if (result.ec == std::errc{} && result.ptr == rest.data() + rest.size() && bytes >= 1 && bytes <= 1024) {
      return bytes;
    }
  }
  fail_io(path,
          fmt::format("element type \"{}\" is not supported; allowed are fixed-size b, i, u, f, c and V "
                      "such as \"<f4\"",
                      descr));
}

/// The product of the sizes and `factor`, or nothing where it would not fit.
std::optional<std::int64_t> product(const std::vector<std::int64_t>& shape, std::int64_t factor) {
  for (const std::int64_t size : shape) {
    if (size == 0) return 0;
  }
  std::int64_t result = factor;
  for (const std::int64_t size : shape) {
    if (size > std::numeric_limits<std::int64_t>::max() / result) return std::nullopt;
    result *= size;
  }
  return result;
}

std::string shape_text(const std::vector<std::int64_t>& shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

}  // namespace

std::int64_t NpyArray::num_elements() const noexcept {
  return product(shape, 1).value_or(std::numeric_limits<std::int64_t>::max());
}

NpyArray read_npy(const std::string& path) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  if (!file) fail_io(path, fmt::format("cannot open: {}", std::strerror(errno)));
  const auto file_bytes = static_cast<std::int64_t>(file.tellg());
  file.seekg(0);
  const auto read = [&](void* data, std::int64_t bytes, std::string_view what) {
    file.read(static_cast<char*>(data), bytes);
    if (!file || file.gcount() != bytes) {
      fail_io(path, fmt::format("ends within the {}: {} bytes are too few", what, file_bytes));
    }
  };

  std::array<unsigned char, 8> lead{};
  constexpr std::array<unsigned char, 6> kMagic = {0x93, 'N', 'U', 'M', 'P', 'Y'};
  if (file_bytes < 0) fail_io(path, "is not a regular file");
  read(lead.data(), 8, "magic");
  if (!std::equal(kMagic.begin(), kMagic.end(), lead.begin())) {
    fail_io(path, "is not a .npy file: it does not begin with \\x93NUMPY");
  }
  const unsigned major = lead[6];
  const unsigned minor = lead[7];
  if (major < 1 || major > 3 || minor != 0) {
    fail_io(path, fmt::format("has .npy version {}.{}; allowed are 1.0, 2.0 and 3.0", major, minor));
  }
  std::uint32_t header_bytes = 0;
  const std::int64_t length_bytes = major == 1 ? 2 : 4;
  read(&header_bytes, length_bytes, "header length");
  if (8 + length_bytes + std::int64_t{header_bytes} > file_bytes) {
    fail_io(path, fmt::format("ends within the header: {} bytes are too few for a header of {}", file_bytes,
                              header_bytes));
  }
  std::string header(header_bytes, '\0');
  read(header.data(), header_bytes, "header");

  NpyArray array;
  HeaderParser(path, header).parse(array);
  const std::int64_t item_bytes = element_bytes(path, array.descr);
  const auto data_bytes = product(array.shape, item_bytes);
  const std::int64_t present = file_bytes - 8 - length_bytes - std::int64_t{header_bytes};
  // Compared before anything is allocated: a header can claim any shape.
  if (!data_bytes || *data_bytes != present) {
    fail_io(path,
            fmt::format("shape {} of {} needs {} bytes of data; the file holds {}", shape_text(array.shape),
                        array.descr, data_bytes ? std::to_string(*data_bytes) : "more than 2^63", present));
  }
  array.data.resize(static_cast<std::size_t>(present));
  read(array.data.data(), present, "data");
  return array;
}

namespace {

[[noreturn]] void fail_argument(const std::string& path, const std::string& why) {
  throw Error(Errc::invalid_argument, fmt::format("{}: {}", path, why));
}

/// "f4" of "<f4".
std::string_view type_of(const NpyArray& array) {
  std::string_view type = array.descr;
  if (type.starts_with('<') || type.starts_with('|') || type.starts_with('=')) type.remove_prefix(1);
  return type;
}

template <class T>
T element(const NpyArray& array, std::size_t index) noexcept {
  T value;
  std::memcpy(&value, array.data.data() + index * sizeof(T), sizeof(T));
  return value;
}

NpyArray read_matrix(const std::string& path, std::string_view rows_and_cols) {
  NpyArray array = read_npy(path);
  if (array.shape.size() != 2) {
    fail_argument(path, fmt::format("shape {} has {} dimensions; {} is needed", shape_text(array.shape),
                                    array.shape.size(), rows_and_cols));
  }
  return array;
}

std::vector<float> to_floats(const std::string& path, const NpyArray& array, std::string_view allowed) {
  const std::string_view type = type_of(array);
  std::vector<float> values(static_cast<std::size_t>(array.num_elements()));
  const auto fill = [&values](auto&& value_at) {
    for (std::size_t i = 0; i < values.size(); ++i) values[i] = value_at(i);
  };
  const bool is_allowed = (fmt::format(" {} ", allowed)).find(fmt::format(" {} ", type)) != std::string::npos;
  if (is_allowed && type == "f4") {
    fill([&](std::size_t i) { return element<float>(array, i); });
  } else if (is_allowed && type == "f8") {
    fill([&](std::size_t i) { return static_cast<float>(element<double>(array, i)); });
  } else if (is_allowed && type == "f2") {
    fill([&](std::size_t i) { return f16_to_f32(element<std::uint16_t>(array, i)); });
  } else if (is_allowed && (type == "u2" || type == "V2")) {
    fill([&](std::size_t i) { return bf16_to_f32(element<std::uint16_t>(array, i)); });
  } else {
    fail_argument(path, fmt::format("element type \"{}\"; allowed are {}", array.descr, allowed));
  }
  return values;
}

/// Ids as int32; what does not fit one is outside the range of experts as well.
std::vector<std::int32_t> to_ids(const std::string& path, const NpyArray& array, std::int32_t num_experts) {
  const std::string_view type = type_of(array);
  if (type != "i4" && type != "i8") {
    fail_argument(path, fmt::format("element type \"{}\"; allowed are i4 and i8", array.descr));
  }
  std::vector<std::int32_t> ids(static_cast<std::size_t>(array.num_elements()));
  const auto top_k = static_cast<std::size_t>(array.shape[1]);
  for (std::size_t i = 0; i < ids.size(); ++i) {
    const std::int64_t id = type == "i4" ? element<std::int32_t>(array, i) : element<std::int64_t>(array, i);
    if (id < -1 || id >= num_experts) {
      fail_argument(path, fmt::format("token {}, k {}: expert {} is outside [-1, {}]", i / top_k, i % top_k,
                                      id, num_experts - 1));
    }
    ids[i] = static_cast<std::int32_t>(id);
  }
  return ids;
}

}  // namespace

ModelDump read_model_dump(const std::string& directory, std::int32_t num_experts) {
  const std::string x_path = directory + "/x.npy";
  const std::string ids_path = directory + "/topk_idx.npy";
  const std::string weights_path = directory + "/topk_weights.npy";
  if (num_experts < 1) fail_argument(directory, fmt::format("{} experts; at least 1 is needed", num_experts));

  ModelDump dump;
  dump.routing.num_experts = num_experts;
  {
    const NpyArray ids = read_matrix(ids_path, "[tokens, top-k]");
    if (ids.shape[1] < 1 || ids.shape[1] > num_experts) {
      fail_argument(ids_path, fmt::format("shape {}: top-k {} is outside [1, {}], the number of experts",
                                          shape_text(ids.shape), ids.shape[1], num_experts));
    }
    dump.num_tokens = dump.routing.num_tokens = ids.shape[0];
    dump.routing.top_k = static_cast<std::int32_t>(ids.shape[1]);
    dump.routing.ids = to_ids(ids_path, ids, num_experts);
    const NpyArray weights = read_matrix(weights_path, "[tokens, top-k]");
    if (weights.shape != ids.shape) {
      fail_argument(weights_path, fmt::format("shape {} differs from shape {} of topk_idx.npy",
                                              shape_text(weights.shape), shape_text(ids.shape)));
    }
    dump.routing.weights = to_floats(weights_path, weights, "f4 f2 f8");
  }
  if (const auto problem = detail::find_id_problem(dump.routing)) {
    throw Error(Errc::invalid_argument, detail::describe(*problem, ids_path));
  }
  if (const auto problem = detail::find_weight_problem(dump.routing)) {
    throw Error(Errc::invalid_argument, detail::describe(*problem, weights_path));
  }

  const NpyArray x = read_matrix(x_path, "[tokens, hidden]");
  if (x.shape[0] != dump.num_tokens) {
    fail_argument(x_path, fmt::format("shape {} has {} tokens; topk_idx.npy has {}", shape_text(x.shape),
                                      x.shape[0], dump.num_tokens));
  }
  if (x.shape[1] < 1)
    fail_argument(x_path, fmt::format("shape {}: hidden must be at least 1", shape_text(x.shape)));
  dump.hidden = x.shape[1];
  dump.x = to_floats(x_path, x, "f4 f2 u2 V2");
  for (std::size_t i = 0; i < dump.x.size(); ++i) {
    if (!std::isfinite(dump.x[i])) {
      const auto hidden = static_cast<std::size_t>(dump.hidden);
      fail_argument(x_path, fmt::format("token {}, element {}: {} is not finite; tokens are finite values",
                                        i / hidden, i % hidden, dump.x[i]));
    }
  }
  return dump;
}

}  // namespace shunt
