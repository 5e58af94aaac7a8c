#include <dlfcn.h>
#include <oneapi/dnnl/dnnl.hpp>

#include <cstring>
#include <limits>
#include <unordered_map>
#include <vector>

#include <fmt/format.h>

#include <shunt/bench/gemm.h>
#include <shunt/core/error.h>

namespace shunt::bench {
namespace {

using dnnl::memory;

/// oneDNN spreads a product over the threads of OpenMP, but a rank has one core. The number is one of the calling
/// thread, and libgomp read the environment when it was loaded, so that a variable would come too late.
void use_one_thread() {
  using SetThreads = void (*)(int);
  if (const auto set = reinterpret_cast<SetThreads>(dlsym(RTLD_DEFAULT, "omp_set_num_threads"));
      set != nullptr)
    set(1);
}

memory::data_type onednn_type(DType dtype) {
  return dtype == DType::bf16 ? memory::data_type::bf16 : memory::data_type::f32;
}

std::vector<std::byte> fill(GemmInput matrix, std::int64_t elements, DType dtype) {
  std::vector<std::byte> bytes(static_cast<std::size_t>(elements * dtype_bytes(dtype)));
  for (std::int64_t i = 0; i < elements; ++i) store_element(dtype, bytes.data(), i, gemm_element(matrix, i));
  return bytes;
}

class OnednnGemm final : public Gemm {
 public:
  explicit OnednnGemm(const GemmShape& shape)
      : shape_(shape),
        engine_(dnnl::engine::kind::cpu, 0),
        stream_(engine_),
        a_bytes_(fill(GemmInput::a, shape.m * shape.k, shape.dtype)),
        c_(static_cast<std::size_t>(shape.m * shape.n)) {
    const auto type = onednn_type(shape.dtype);
    const memory::desc a({shape.m, shape.k}, type, memory::format_tag::ab);
    const memory::desc b({shape.k, shape.n}, type, memory::format_tag::ab);
    const memory::desc any({shape.k, shape.n}, type, memory::format_tag::any);
    const memory::desc c({shape.m, shape.n}, memory::data_type::f32, memory::format_tag::ab);
#if DNNL_VERSION_MAJOR >= 3
    const dnnl::matmul::primitive_desc plan(engine_, a, any, c);
#else
    const dnnl::matmul::primitive_desc plan(dnnl::matmul::desc(a, any, c), engine_);
#endif
    product_ = dnnl::matmul(plan);
    std::vector<std::byte> plain = fill(GemmInput::b, shape.k * shape.n, shape.dtype);
    memory from(b, engine_, plain.data());
    memory packed(plan.weights_desc(), engine_);
    dnnl::reorder(from, packed).execute(stream_, from, packed);
    stream_.wait();
    arguments_ = {{DNNL_ARG_SRC, memory(a, engine_, a_bytes_.data())},
                  {DNNL_ARG_WEIGHTS, packed},
                  {DNNL_ARG_DST, memory(c, engine_, c_.data())}};
  }

  void run() override {
    product_.execute(stream_, arguments_);
    stream_.wait();
  }

  void poison() override {
    std::fill(c_.begin(), c_.end(), std::numeric_limits<float>::quiet_NaN());
  }

  [[nodiscard]] std::string check() override {
    return check_gemm(shape_, [this](std::int64_t row, std::int64_t column) {
      return c_[static_cast<std::size_t>(row * shape_.n + column)];
    });
  }

 private:
  GemmShape shape_;
  dnnl::engine engine_;
  dnnl::stream stream_;
  std::vector<std::byte> a_bytes_;
  std::vector<float> c_;
  dnnl::matmul product_;
  std::unordered_map<int, memory> arguments_;
};

}  // namespace

std::string onednn_unavailable() {
  return {};
}

std::string onednn_version() {
  const dnnl_version_t* const version = dnnl_version();
  return fmt::format("oneDNN {}.{}.{}", version->major, version->minor, version->patch);
}

std::unique_ptr<Gemm> make_onednn_gemm(const GemmShape& shape, void* /*stream*/) {
  use_one_thread();
  try {
    return std::make_unique<OnednnGemm>(shape);
  } catch (const dnnl::error& error) {
    if (error.status == dnnl_out_of_memory)
      throw Error(Errc::out_of_memory,
                  fmt::format("oneDNN finds no memory for the product {}", gemm_name(shape)));
    throw Error(Errc::unavailable,
                fmt::format("{} cannot compute {} on this processor ({}); --gemm-dtype float32 "
                            "works everywhere",
                            onednn_version(), gemm_name(shape), error.what()));
  }
}

}  // namespace shunt::bench
