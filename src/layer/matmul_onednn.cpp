#include <dlfcn.h>
#include <oneapi/dnnl/dnnl.hpp>

#include <array>
#include <cstring>
#include <map>
#include <unordered_map>

#include <fmt/format.h>

#include <shunt/core/error.h>

#include "matmul_onednn.h"

namespace shunt {
namespace {

using dnnl::memory;

template <class Function>
Function openmp(const char* name) {
  return reinterpret_cast<Function>(dlsym(RTLD_DEFAULT, name));
}

void set_threads(int threads) {
  static const auto set = openmp<void (*)(int)>("omp_set_num_threads");
  if (set != nullptr) set(threads);
}

int get_threads() {
  static const auto get = openmp<int (*)()>("omp_get_max_threads");
  return get != nullptr ? get() : 0;
}

/// What a prepared product depends on.
using Key = std::array<std::int64_t, 10>;

/// Prepared products of one thread: their scratch memory is the primitive's own, so that threads cannot share them.
struct Prepared {
  dnnl::engine engine{dnnl::engine::kind::cpu, 0};
  dnnl::stream stream{engine};
  struct Product {
    dnnl::matmul primitive;
    memory::desc a, b, bias, c;
  };
  std::map<Key, Product> products;
};

Prepared& prepared() {
  thread_local Prepared of_thread;
  return of_thread;
}

/// Where the first choice is the general product, which does not use the matrix unit of the processor, but another one
/// does (its name begins with brg), takes that: three times faster for gradients of weights.
void prefer_tiles(dnnl::matmul::primitive_desc& plan) {
  const auto begins = [](const dnnl::matmul::primitive_desc& of, const char* name) {
    return std::strncmp(of.impl_info_str(), name, std::strlen(name)) == 0;
  };
  if (!begins(plan, "gemm")) return;
  dnnl::matmul::primitive_desc next = plan;
  while (next.next_impl())
    if (begins(next, "brg")) {
      plan = next;
      return;
    }
}

Prepared::Product prepare(const dnnl::engine& engine, const MatmulCall& call) {
  using Type = memory::data_type;
  const Type in = call.in == DType::bf16 ? Type::bf16 : Type::f32;
  const Type out = call.out == DType::bf16 ? Type::bf16 : Type::f32;
  const auto strides = [](std::int64_t stride, bool transposed) {
    return transposed ? memory::dims{1, stride} : memory::dims{stride, 1};
  };
  Prepared::Product product;
  product.a = memory::desc({call.m, call.k}, in, strides(call.a_stride, call.a_transposed));
  product.b = memory::desc({call.k, call.n}, in, strides(call.b_stride, call.b_transposed));
  product.c = memory::desc({call.m, call.n}, out, strides(call.c_stride, false));
  if (call.bias != nullptr) product.bias = memory::desc({1, call.n}, Type::f32, memory::dims{call.n, 1});
  dnnl::primitive_attr attributes;
  if (call.accumulate) {
    dnnl::post_ops sum;
    sum.append_sum(1.0F);
    attributes.set_post_ops(sum);
  }
#if DNNL_VERSION_MAJOR >= 3
  dnnl::matmul::primitive_desc plan =
      call.bias != nullptr
          ? dnnl::matmul::primitive_desc(engine, product.a, product.b, product.bias, product.c, attributes)
          : dnnl::matmul::primitive_desc(engine, product.a, product.b, product.c, attributes);
#else
  dnnl::matmul::primitive_desc plan(call.bias != nullptr
                                        ? dnnl::matmul::desc(product.a, product.b, product.bias, product.c)
                                        : dnnl::matmul::desc(product.a, product.b, product.c),
                                    attributes, engine);
#endif
  prefer_tiles(plan);
  product.primitive = dnnl::matmul(plan);
  return product;
}

/// Any size and stride without preparation.
void multiply_f32(const MatmulCall& call) {
  auto* const c = static_cast<float*>(call.c);
  if (call.bias != nullptr)
    for (std::int64_t row = 0; row < call.m; ++row)
      std::memcpy(c + row * call.c_stride, call.bias, static_cast<std::size_t>(call.n) * sizeof(float));
  const float beta = call.accumulate || call.bias != nullptr ? 1.0F : 0.0F;
  const dnnl_status_t status =
      dnnl_sgemm(call.a_transposed ? 'T' : 'N', call.b_transposed ? 'T' : 'N', call.m, call.n, call.k, 1.0F,
                 static_cast<const float*>(call.a), call.a_stride, static_cast<const float*>(call.b),
                 call.b_stride, beta, c, call.c_stride);
  if (status != dnnl_success)
    throw Error(status == dnnl_out_of_memory ? Errc::out_of_memory : Errc::internal,
                fmt::format("{}: the product {} x {} x {} in float32 ended with status {}", onednn_name(),
                            call.m, call.n, call.k, static_cast<int>(status)));
}

}  // namespace

std::string onednn_missing() {
  return {};
}

std::string onednn_name() {
  const dnnl_version_t* const version = dnnl_version();
  return fmt::format("oneDNN {}.{}.{}", version->major, version->minor, version->patch);
}

OneThread::OneThread() : before_(get_threads()) {
  if (before_ > 1) set_threads(1);
}

OneThread::~OneThread() {
  if (before_ > 1) set_threads(before_);
}

namespace detail {

bool onednn_matmul(const MatmulCall& call) {
  const OneThread alone;
  if (call.in == DType::f32) {
    multiply_f32(call);
    return true;
  }
  // Sizes change with the load of experts; what has not been used for long is prepared again.
  constexpr std::size_t kMostPrepared = 512;
  try {
    Prepared& mine = prepared();
    const Key key{call.m,
                  call.n,
                  call.k,
                  call.a_stride,
                  call.b_stride,
                  call.c_stride,
                  (call.a_transposed ? 1 : 0) + (call.b_transposed ? 2 : 0),
                  static_cast<std::int64_t>(call.out),
                  call.bias != nullptr ? 1 : 0,
                  call.accumulate ? 1 : 0};
    auto found = mine.products.find(key);
    if (found == mine.products.end()) {
      if (mine.products.size() >= kMostPrepared) mine.products.clear();
      found = mine.products.emplace(key, prepare(mine.engine, call)).first;
    }
    const Prepared::Product& product = found->second;
    // oneDNN writes to the destination only.
    std::unordered_map<int, memory> arguments = {
        {DNNL_ARG_SRC, memory(product.a, mine.engine, const_cast<void*>(call.a))},
        {DNNL_ARG_WEIGHTS, memory(product.b, mine.engine, const_cast<void*>(call.b))},
        {DNNL_ARG_DST, memory(product.c, mine.engine, call.c)}};
    if (call.bias != nullptr)
      arguments.emplace(DNNL_ARG_BIAS, memory(product.bias, mine.engine, const_cast<float*>(call.bias)));
    product.primitive.execute(mine.stream, arguments);
    mine.stream.wait();
    return true;
  } catch (const dnnl::error& error) {
    if (error.status == dnnl_unimplemented) return false;
    throw Error(error.status == dnnl_out_of_memory ? Errc::out_of_memory : Errc::internal,
                fmt::format("{}: the product {} x {} x {} in {}: {}", onednn_name(), call.m, call.n, call.k,
                            dtype_name(call.in), error.what()));
  }
}

}  // namespace detail
}  // namespace shunt
