// The operation `setok::cluster`: checks, results, and one image after the other or at once.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <tuple>
#include <vector>

#include "image.h"
#include "tensors.h"

namespace setok {
namespace {

using torch::stable::Tensor;
using Results = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

template <class T>
void run(const Tensor& x, const std::optional<Tensor>& valid, const Layout& layout,
         const Options& options, const std::optional<Tensor> (&known)[4], index_t dense_limit,
         const Results& results) {
  const index_t rows = options.max_clusters + 1, k = options.k;
  const auto index_of = [&](const std::optional<Tensor>& tensor) {
    return tensor ? static_cast<const index_t*>(tensor->const_data_ptr()) : nullptr;
  };
  const index_t *knn = index_of(known[0]), *parent = index_of(known[1]);
  const index_t *seeds = index_of(known[2]), *counts = index_of(known[3]);
  const bool replay = knn != nullptr || known[0].has_value();
  static const index_t kNothing[1] = {-1};

  const auto one = [&](index_t b) {
    const index_t start = layout.start[b];
    const ImageInput image = image_of(x, valid, layout, b);
    KnownDecisions decisions{nullptr, nullptr, nullptr, nullptr};
    if (replay)
      decisions = {knn == nullptr ? kNothing : knn + start * k, parent + start,
                   seeds + b * (rows - 1), counts + b};
    T* masks = data<T>(std::get<0>(results));
    const ImageOutput<T> out{
        masks + layout.mask_offset(b, rows),
        layout.mask_stride(b),
        {data<T>(std::get<2>(results)) + start, data<T>(std::get<3>(results)) + start,
         data<T>(std::get<4>(results)) + start,
         replay ? nullptr : data<index_t>(std::get<5>(results)) + start * k,
         replay ? nullptr : data<index_t>(std::get<6>(results)) + start},
        data<index_t>(std::get<1>(results)) + start,
        replay ? nullptr : data<index_t>(std::get<7>(results)) + b * (rows - 1),
        replay ? nullptr : data<index_t>(std::get<8>(results)) + b};
    cluster_image<T>(image, options, decisions, dense_limit, out);
    Scratch::of_this_thread().trim();
  };
  parallel_images(layout.images(), one);
}

// Of the C++ side, since a compiled call has read no values: a wrong index would read foreign
// memory.
void check_decisions(const Layout& layout, const std::optional<Tensor> (&known)[4], index_t k,
                     index_t max_clusters) {
  const auto check = [](const index_t* value, index_t count, index_t low, index_t high) {
    const bool fit =
        std::all_of(value, value + count, [=](index_t v) { return low <= v && v < high; });
    STD_TORCH_CHECK(fit, "decisions: expected tokens of their image, -1 where there is none");
  };
  for (index_t b = 0; b < layout.images(); ++b) {
    const index_t start = layout.start[b], tokens = layout.tokens(b);
    check(values<index_t>(*known[0]) + start * k, tokens * k, -1, tokens);
    check(values<index_t>(*known[1]) + start, tokens, -1, tokens);
    check(values<index_t>(*known[2]) + b * max_clusters, max_clusters, -1, tokens);
    check(values<index_t>(*known[3]) + b, 1, 0, max_clusters + 1);
  }
}

// x (B, N, D), or (T, D) with cu_seqlens; contiguous, as are all others. The four decisions come
// together or not at all; with them, the last four results are empty.
Results cluster(const Tensor& x, std::optional<Tensor> valid, std::optional<Tensor> cu_seqlens,
                int64_t /*max_seqlen*/, std::optional<Tensor> knn, std::optional<Tensor> parent,
                std::optional<Tensor> seeds, std::optional<Tensor> counts,
                std::optional<Tensor> learnable, int64_t kernel, int64_t alpha, double bandwidth,
                double beta, double temperature, double offset, int64_t scale, double factor,
                bool score_norm_max, int64_t k, int64_t max_clusters, bool distinct_seeds,
                bool include_self, double stop_residual, double min_mass, int64_t dense_limit) {
  const bool packed = cu_seqlens.has_value(), replay = knn.has_value();
  STD_TORCH_CHECK(x.dim() == (packed ? 2 : 3), "x: wrong rank");
  STD_TORCH_CHECK(x.is_contiguous(), "x: expected a contiguous tensor");
  const MaskOptions given{kernel, alpha, bandwidth, beta,          temperature,
                          offset, scale, factor,    score_norm_max};
  Options options = given.options(x.size(-1), learnable);
  options.k = k;
  options.max_clusters = max_clusters;
  options.distinct_seeds = distinct_seeds;
  options.include_self = include_self;
  options.stop_residual = stop_residual;
  options.min_mass = min_mass;
  const Layout layout(x, cu_seqlens);
  const bool wide = dtype_of(x) == Dtype::f64;
  const index_t images = layout.images(), rows = max_clusters + 1;
  const auto floats = [&](const std::vector<int64_t>& shape) {
    return empty_cpu(shape, wide ? ScalarType::Double : ScalarType::Float);
  };
  const std::vector<int64_t> leading(x.sizes().begin(), x.sizes().end() - 1);
  std::vector<int64_t> masks = leading, neighbours = leading;
  masks.insert(masks.end() - 1, rows);
  neighbours.push_back(k);
  const auto made = [&](const std::vector<int64_t>& shape) {
    return empty_index(replay ? std::vector<int64_t>{0} : shape);
  };
  const Results results{
      floats(masks),   empty_index(leading), floats(leading), floats(leading),
      floats(leading), made(neighbours),     made(leading),   made({images, max_clusters}),
      made({images})};
  const std::optional<Tensor> known[4] = {knn, parent, seeds, counts};
  if (replay) check_decisions(layout, known, k, max_clusters);
  for_type_of(x, [&](auto zero) {
    run<decltype(zero)>(x, valid, layout, options, known, dense_limit, results);
  });
  return results;
}

}  // namespace
}  // namespace setok

STABLE_TORCH_LIBRARY_IMPL(setok, CPU, m) { m.impl("cluster", TORCH_BOX(&setok::cluster)); }
