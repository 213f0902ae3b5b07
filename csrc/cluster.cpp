// Operation `setok::cluster`: checks, results, and the loop over images.

#include <algorithm>
#include <vector>

#include "checks.h"
#include "image.h"
#include "operators.h"
#include "tensors.h"

namespace setok {
namespace {

template <class T>
void run(const Tensor& x, const Tensor* valid, const Tensor* importance, const Tensor* budget,
         const Layout& layout, const Options& options, const Tensor* const (&known)[4],
         index_t dense_limit, const std::array<Tensor, 10>& results) {
  const index_t rows = options.max_clusters + 1, k = options.k;
  const auto index_of = [&](const Tensor* tensor) {
    return tensor ? static_cast<const index_t*>(tensor->const_data_ptr()) : nullptr;
  };
  const index_t *knn = index_of(known[0]), *parent = index_of(known[1]);
  const index_t *seeds = index_of(known[2]), *counts = index_of(known[3]);
  const bool replay = knn != nullptr || known[0] != nullptr;
  static const index_t kNothing[1] = {-1};

  const auto one = [&](index_t b) {
    const index_t start = layout.start[b];
    const ImageInput image = image_of(x, valid, layout, b);
    KnownDecisions decisions{nullptr, nullptr, nullptr, nullptr};
    if (replay)
      decisions = {knn == nullptr ? kNothing : knn + start * k, parent + start,
                   seeds + b * (rows - 1), counts + b};
    const Guide<T> guide{values<T>(importance, start),
                         budget ? values<index_t>(*budget)[b] : options.max_clusters};
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
    cluster_image<T>(image, options, decisions, guide, dense_limit, out);
    Scratch::of_this_thread().trim();
  };
  parallel_images(layout.images(), one);
}

}  // namespace

// x (B, N, D), or (T, D) with cu_seqlens; all tensors are contiguous. Either all four decisions are
// given or none; if given, the four results before the last are empty; the last is for other
// devices.
std::array<Tensor, 10> cluster(const Tensor& x, const Tensor* valid, const Tensor* importance,
                               const Tensor* budget, const Tensor* cu_seqlens, int64_t max_seqlen,
                               const Tensor* knn, const Tensor* parent, const Tensor* seeds,
                               const Tensor* counts, const Tensor* learnable, int64_t kernel,
                               int64_t alpha, double bandwidth, double beta, double temperature,
                               double offset, int64_t scale, double factor, bool score_norm_max,
                               int64_t k, int64_t max_clusters, bool distinct_seeds,
                               bool include_self, bool exact, double stop_residual, double min_mass,
                               int64_t dense_limit) {
  const Layout layout = check_tokens(x, valid, cu_seqlens, max_seqlen);
  const ScalarType wide = wide_of(x);
  const MaskOptions given{kernel, alpha, bandwidth, beta,          temperature,
                          offset, scale, factor,    score_norm_max};
  Options options = check_options(given, x.size(-1), learnable, wide);
  check_count("k", k);
  check_count("max_clusters", max_clusters);
  check_at_least("stop_residual", stop_residual, 0);
  check_at_least("min_mass", min_mass, 0);
  if (exact && !distinct_seeds)
    refuse("exact", "distinct_seeds with it", std::string("repeated seeds"));
  const Tensor* const known[4] = {knn, parent, seeds, counts};
  const auto there = std::count_if(known, known + 4, [](const Tensor* t) { return t != nullptr; });
  const bool replay = there == 4;
  if (!replay && there > 0)
    refuse("decisions", "all of knn, parent, seeds and counts, or none",
           static_cast<int64_t>(there));
  const Shape leading = leading_of(x);
  check_importance(importance, valid, wide, leading);
  check_budget(budget, layout.images(), max_clusters);
  if (replay) check_decisions(layout, leading, *knn, *parent, *seeds, *counts, k, max_clusters);
  options.k = k;
  options.max_clusters = max_clusters;
  options.distinct_seeds = distinct_seeds;
  options.include_self = include_self;
  options.exact = exact;
  options.stop_residual = stop_residual;
  options.min_mass = min_mass;
  const index_t images = layout.images(), rows = max_clusters + 1;
  Shape neighbours = leading;
  neighbours.push_back(k);
  const auto made = [&](const Shape& shape) { return empty_index(replay ? Shape{0} : shape); };
  std::array<Tensor, 10> results{empty_cpu(mask_shape(layout, leading, rows), wide),
                                 empty_index(leading),
                                 empty_cpu(leading, wide),
                                 empty_cpu(leading, wide),
                                 empty_cpu(leading, wide),
                                 made(neighbours),
                                 made(leading),
                                 made({images, max_clusters}),
                                 made({images}),
                                 empty_cpu({0}, ScalarType::Byte)};
  for_type_of(x, [&](auto zero) {
    run<decltype(zero)>(x, valid, importance, budget, layout, options, known, dense_limit, results);
  });
  return results;
}

}  // namespace setok
