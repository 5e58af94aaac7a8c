#include <shunt/routing/npy.h>

#include <cmath>
#include <cstring>
#include <limits>

#include <gtest/gtest.h>

#include <shunt/core/dtype.h>

#include "expect_error.h"
#include "temp_dir.h"

namespace shunt {
namespace {

using test::expect_error;
using test::TempDir;

template <class T>
std::string bytes_of(const std::vector<T>& values) {
  std::string bytes(values.size() * sizeof(T), '\0');
  if (!values.empty()) std::memcpy(bytes.data(), values.data(), bytes.size());
  return bytes;
}

/// A .npy file; numpy pads the header so that the data begins at a multiple of 64.
std::string npy(const std::string& dictionary, const std::string& data, char major = 1, char minor = 0) {
  const std::size_t lead = major == 1 ? 10 : 12;
  std::string header = dictionary;
  header.resize((lead + header.size() + 1 + 63) / 64 * 64 - lead - 1, ' ');
  header += '\n';
  std::string file = std::string("\x93NUMPY") + major + minor;
  for (std::size_t i = 0; i < lead - 8; ++i) file += static_cast<char>(header.size() >> (8 * i) & 0xffU);
  return file + header + data;
}

std::string dictionary(const std::string& descr, const std::string& shape,
                       const std::string& order = "False") {
  return "{'descr': '" + descr + "', 'fortran_order': " + order + ", 'shape': " + shape + ", }";
}

template <class T>
std::string npy_of(const std::string& descr, const std::string& shape, const std::vector<T>& values) {
  return npy(dictionary(descr, shape), bytes_of(values));
}

TEST(NpyTest, ReadsEveryVersionAndShape) {
  const TempDir dir;
  const std::string data = bytes_of(std::vector<float>{1, 2, 3, 4, 5, 6});
  for (const char major : {'\1', '\2', '\3'}) {
    const NpyArray array = read_npy(dir.write("a.npy", npy(dictionary("<f4", "(2, 3)"), data, major)));
    EXPECT_EQ(array.descr, "<f4");
    EXPECT_EQ(array.shape, (std::vector<std::int64_t>{2, 3}));
    EXPECT_EQ(array.num_elements(), 6);
    ASSERT_EQ(array.data.size(), 24U);
    EXPECT_EQ(std::memcmp(array.data.data(), data.data(), 24), 0);
  }
  EXPECT_EQ(read_npy(dir.write("a.npy", npy(dictionary("|u1", "(3,)"), "abc"))).num_elements(), 3);
  EXPECT_EQ(read_npy(dir.write("a.npy", npy(dictionary("<f8", "()"), "12345678"))).num_elements(), 1);
  EXPECT_EQ(read_npy(dir.write("a.npy", npy(dictionary("<i8", "(0, 5)"), ""))).num_elements(), 0);
  EXPECT_EQ(read_npy(dir.write("a.npy", npy(dictionary("|V2", "(2,)"), "abcd"))).descr, "|V2");
}

TEST(NpyTest, ReadsKeysInAnyOrderAndQuotes) {
  const TempDir dir;
  const std::string header = R"({"shape":(2,),"descr":"<i4","fortran_order":False})";
  EXPECT_EQ(read_npy(dir.write("a.npy", npy(header, "12345678"))).shape, (std::vector<std::int64_t>{2}));
}

TEST(NpyTest, SizesWithZeroDoNotOverflow) {
  NpyArray array;
  array.shape = {std::int64_t{1} << 62, std::int64_t{1} << 62, 0};
  EXPECT_EQ(array.num_elements(), 0);
}

TEST(NpyTest, SaysWhatIsWrongWithTheFile) {
  const TempDir dir;
  const std::string data = bytes_of(std::vector<float>{1, 2, 3, 4});
  const std::string good = npy(dictionary("<f4", "(2, 2)"), data);
  std::string magic = good;
  magic[0] = 'x';
  const std::pair<std::string, std::string> cases[] = {
      {"", "ends within the magic: 0 bytes are too few"},
      {"\x93NUM", "ends within the magic: 4 bytes are too few"},
      {magic, "is not a .npy file: it does not begin with \\x93NUMPY"},
      {npy(dictionary("<f4", "(2, 2)"), data, 4), "has .npy version 4.0; allowed are 1.0, 2.0 and 3.0"},
      {npy(dictionary("<f4", "(2, 2)"), data, 1, 1), "has .npy version 1.1; allowed are 1.0, 2.0 and 3.0"},
      {good.substr(0, 9), "ends within the header length: 9 bytes are too few"},
      {good.substr(0, 40), "ends within the header: 40 bytes are too few for a header of 118"},
      {good.substr(0, good.size() - 1), "shape [2, 2] of <f4 needs 16 bytes of data; the file holds 15"},
      {good + "x", "shape [2, 2] of <f4 needs 16 bytes of data; the file holds 17"},
      {npy(dictionary("<f4", "(2, 2)", "True"), data),
       "header, character 38: the array is in Fortran order; save it in C order (numpy.ascontiguousarray)"},
      {npy(dictionary(">f4", "(2, 2)"), data),
       "element type \">f4\" is big endian; save it as little endian"},
      {npy(dictionary("|O", "(2, 2)"), data),
       "element type \"|O\" is not supported; allowed are fixed-size b, i, u, f, c and V such as \"<f4\""},
      {npy(dictionary("<U4", "(1,)"), data),
       "element type \"<U4\" is not supported; allowed are fixed-size b, i, u, f, c and V such as \"<f4\""},
      {npy("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (4,), }", data),
       "header, character 10: record types (descr is a list) are not supported"},
      {npy("{'descr': '<f4', 'fortran_order': False}", data),
       "header, character 54: needs the keys descr, fortran_order and shape"},
      {npy("{'descr': '<f4', 'order': False}", data),
       "header, character 25: unknown key \"order\"; allowed are descr, fortran_order, shape"},
      {npy("{'descr': '<f4', 'fortran_order': 0, 'shape': (4,), }", data),
       "header, character 34: expected True or False"},
      {npy(dictionary("<f4", "(2, -2)"), data), "header, character 54: expected a size >= 0"},
      {npy(dictionary("<f4", "(2 2)"), data), "header, character 53: expected ')'"},
      {npy(dictionary("<f4", "(4611686018427387904, 4)"), data),
       "shape [4611686018427387904, 4] of <f4 needs more than 2^63 bytes of data; the file holds 16"},
  };
  for (const auto& [file, message] : cases) {
    const std::string path = dir.write("a.npy", file);
    expect_error(Errc::io, path + ": " + message, [&] { (void)read_npy(path); });
  }
  expect_error(Errc::io, dir.file("none.npy") + ": cannot open: No such file or directory",
               [&] { (void)read_npy(dir.file("none.npy")); });
  EXPECT_THROW((void)read_npy(dir.path()), Error);
}

/// Three files of 2 tokens, hidden 3, top-2 over 8 experts, to be spoilt one by one.
struct Dump {
  TempDir dir;
  Dump() {
    dir.write("x.npy", npy_of<float>("<f4", "(2, 3)", {1, 2, 3, -4, 5.5F, 0}));
    dir.write("topk_idx.npy", npy_of<std::int64_t>("<i8", "(2, 2)", {7, 0, 3, -1}));
    dir.write("topk_weights.npy", npy_of<float>("<f4", "(2, 2)", {0.5F, 0.5F, 2.5F, 0}));
  }
  void refuse(const std::string& message, Errc code = Errc::invalid_argument,
              std::int32_t num_experts = 8) const {
    expect_error(code, dir.path() + message, [&] { (void)read_model_dump(dir.path(), num_experts); });
  }
};

TEST(ModelDumpTest, ReadsWhatAModelSaved) {
  const Dump dump;
  const ModelDump model = read_model_dump(dump.dir.path(), 8);
  EXPECT_EQ(model.num_tokens, 2);
  EXPECT_EQ(model.hidden, 3);
  EXPECT_EQ(model.x, (std::vector<float>{1, 2, 3, -4, 5.5F, 0}));
  EXPECT_EQ(model.routing.num_tokens, 2);
  EXPECT_EQ(model.routing.top_k, 2);
  EXPECT_EQ(model.routing.num_experts, 8);
  EXPECT_EQ(model.routing.ids, (std::vector<std::int32_t>{7, 0, 3, -1}));
  EXPECT_EQ(model.routing.weights, (std::vector<float>{0.5F, 0.5F, 2.5F, 0}));
}

TEST(ModelDumpTest, ConvertsEveryElementType) {
  const Dump dump;
  const std::vector<float> values = {1, 2, 3, -4, 5.5F, 0};
  std::vector<std::uint16_t> half;
  std::vector<std::uint16_t> brain;
  for (const float value : values) {
    half.push_back(f32_to_f16(value));
    brain.push_back(f32_to_bf16(value));
  }
  for (const auto& [descr, bits] :
       {std::pair("<f2", half), std::pair("<u2", brain), std::pair("|V2", brain), std::pair("<V2", brain)}) {
    dump.dir.write("x.npy", npy_of(descr, "(2, 3)", bits));
    EXPECT_EQ(read_model_dump(dump.dir.path(), 8).x, values) << descr;
  }
  dump.dir.write("topk_idx.npy", npy_of<std::int32_t>("<i4", "(2, 2)", {7, 0, 3, -1}));
  dump.dir.write("topk_weights.npy", npy_of<double>("<f8", "(2, 2)", {0.5, 0.5, 2.5, 0}));
  EXPECT_EQ(read_model_dump(dump.dir.path(), 8).routing.ids, (std::vector<std::int32_t>{7, 0, 3, -1}));
  EXPECT_EQ(read_model_dump(dump.dir.path(), 8).routing.weights, (std::vector<float>{0.5F, 0.5F, 2.5F, 0}));
}

TEST(ModelDumpTest, NamesFileTokenAndWhatIsAllowed) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  {
    const Dump dump;
    dump.dir.write("topk_idx.npy", npy_of<std::int64_t>("<i8", "(2, 2)", {7, 0, 3, 300}));
    dump.refuse("/topk_idx.npy: token 1, k 1: expert 300 is outside [-1, 7]");
    dump.dir.write("topk_idx.npy", npy_of<std::int64_t>("<i8", "(2, 2)", {7, std::int64_t{1} << 32, 3, 0}));
    dump.refuse("/topk_idx.npy: token 0, k 1: expert 4294967296 is outside [-1, 7]");
    dump.dir.write("topk_idx.npy", npy_of<std::int64_t>("<i8", "(2, 2)", {7, 0, 3, 3}));
    dump.refuse(
        "/topk_idx.npy: token 1, k 1: expert 3 is chosen twice; the experts of a token must be distinct");
    dump.dir.write("topk_idx.npy", npy_of<std::int64_t>("<i8", "(4,)", {7, 0, 3, 1}));
    dump.refuse("/topk_idx.npy: shape [4] has 1 dimensions; [tokens, top-k] is needed");
    dump.dir.write("topk_idx.npy", npy_of<float>("<f4", "(2, 2)", {7, 0, 3, 1}));
    dump.refuse("/topk_idx.npy: element type \"<f4\"; allowed are i4 and i8");
    dump.dir.write("topk_idx.npy", npy_of<std::int64_t>("<i8", "(2, 0)", {}));
    dump.refuse("/topk_idx.npy: shape [2, 0]: top-k 0 is outside [1, 8], the number of experts");
  }
  {
    const Dump dump;
    dump.refuse("/topk_idx.npy: shape [2, 2]: top-k 2 is outside [1, 1], the number of experts",
                Errc::invalid_argument, 1);
    dump.refuse(": 0 experts; at least 1 is needed", Errc::invalid_argument, 0);
    dump.dir.write("topk_weights.npy", npy_of<float>("<f4", "(2, 2)", {0.5F, 0.5F, nan, 0}));
    dump.refuse(
        "/topk_weights.npy: token 1, k 0: weight nan is not finite; weights are finite float32 values");
    dump.dir.write("topk_weights.npy", npy_of<double>("<f8", "(2, 2)", {0.5, 1e300, 0, 0}));
    dump.refuse(
        "/topk_weights.npy: token 0, k 1: weight inf is not finite; weights are finite float32 values");
    dump.dir.write("topk_weights.npy", npy_of<float>("<f4", "(1, 2)", {0.5F, 0.5F}));
    dump.refuse("/topk_weights.npy: shape [1, 2] differs from shape [2, 2] of topk_idx.npy");
    dump.dir.write("topk_weights.npy", npy_of<std::uint16_t>("<u2", "(2, 2)", {0, 0, 0, 0}));
    dump.refuse("/topk_weights.npy: element type \"<u2\"; allowed are f4 f2 f8");
  }
  {
    const Dump dump;
    dump.dir.write("x.npy", npy_of<float>("<f4", "(2, 3)", {1, 2, 3, 4, nan, 6}));
    dump.refuse("/x.npy: token 1, element 1: nan is not finite; tokens are finite values");
    dump.dir.write("x.npy", npy_of<float>("<f4", "(3, 2)", {1, 2, 3, 4, 5, 6}));
    dump.refuse("/x.npy: shape [3, 2] has 3 tokens; topk_idx.npy has 2");
    dump.dir.write("x.npy", npy_of<float>("<f4", "(2, 0)", {}));
    dump.refuse("/x.npy: shape [2, 0]: hidden must be at least 1");
    dump.dir.write("x.npy", npy_of<double>("<f8", "(2, 1)", {1, 2}));
    dump.refuse("/x.npy: element type \"<f8\"; allowed are f4 f2 u2 V2");
    std::filesystem::remove(dump.dir.file("x.npy"));
    dump.refuse("/x.npy: cannot open: No such file or directory", Errc::io);
  }
}

}  // namespace
}  // namespace shunt
