#pragma once

#include <functional>
#include <memory>
#include <vector>

#include <shunt/bench/gemm.h>
#include <shunt/bench/method.h>

#include "methods/shunt.h"

namespace shunt::bench {

/// What the four ways are made of.
struct OverlapPlan {
  std::int64_t rows = 0;     ///< m of the product; 0: the tokens of the point
  std::int64_t columns = 0;  ///< n; 0: matched to the communication
  std::int64_t depth = 0;    ///< k; 0: the hidden size of the point
  DType dtype = DType::f32;
  std::function<std::unique_ptr<SplitMethod>(const MethodContext&)> make_step;
  /// Memory of one rank for the step, as MethodSpec::own_bytes.
  std::function<std::int64_t(const Workload&, const MethodSettings&)> step_bytes;
  MakeGemm make_gemm;
};

/// Most bytes that B of a matched product may take.
inline constexpr std::int64_t kMostMatchedBytes = std::int64_t{256} << 20U;

/// The next number of columns to try, where a product of `columns` took `took_ns` and should take `wanted_ns`: a multiple
/// of 16 from 16 to `most`, and at most 16 times as many as before, since small products say little about large ones.
[[nodiscard]] std::int64_t next_columns(std::int64_t columns, double took_ns, double wanted_ns,
                                        std::int64_t most);

/// kOverlapWays, in this order, as methods for the harness: dispatch and combine are one half each, with the product
/// behind, between or instead of them. All four share one object and one product, so that they differ in order alone.
[[nodiscard]] std::vector<MethodSpec> overlap_methods(const OverlapPlan& plan);

}  // namespace shunt::bench
