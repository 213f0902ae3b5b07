// Operation `setok::cluster_backward`: gradients of every image, and their sums.

#include <vector>

#include "checks.h"
#include "image_backward.h"
#include "operators.h"
#include "tensors.h"

namespace setok {
namespace {

template <class T>
ImageValues<T> values_of(const Tensor* const (&tensors)[4], const Layout& layout, index_t b,
                         index_t rows) {
  const index_t start = layout.start[b];
  return {values<T>(tensors[0], layout.mask_offset(b, rows)), layout.mask_stride(b),
          values<T>(tensors[1], start), values<T>(tensors[2], start), values<T>(tensors[3], start)};
}

}  // namespace

// x, decisions and values are the inputs and outputs of `cluster`, all contiguous. Gradients have
// the dtype of the values; an absent one is zero. `saved` is for other devices.
std::array<Tensor, 3> cluster_backward(
    const Tensor& x, const Tensor* valid, const Tensor* importance, const Tensor* cu_seqlens,
    int64_t max_seqlen, const Tensor& knn, const Tensor& parent, const Tensor& seeds,
    const Tensor& counts, const Tensor& masks, const Tensor& density, const Tensor& delta,
    const Tensor& score, const Tensor* grad_masks, const Tensor* grad_density,
    const Tensor* grad_delta, const Tensor* grad_score, const Tensor* /* saved */,
    const Tensor* learnable, int64_t kernel, int64_t alpha, double bandwidth, double beta,
    double temperature, double offset, int64_t scale, double factor, bool score_norm_max) {
  const Layout layout = check_tokens(x, valid, cu_seqlens, max_seqlen);
  const ScalarType wide = wide_of(x);
  const MaskOptions given{kernel, alpha, bandwidth, beta,          temperature,
                          offset, scale, factor,    score_norm_max};
  const index_t dim = x.size(-1);
  Options options = check_options(given, dim, learnable, wide);
  options.k = knn.dim() > 0 ? knn.size(-1) : 0;
  options.max_clusters = seeds.dim() > 0 ? seeds.size(-1) : 0;
  check_count("k", options.k);
  check_count("max_clusters", options.max_clusters);
  const index_t rows = options.max_clusters + 1;
  const Shape leading = leading_of(x);
  check_decisions(layout, leading, knn, parent, seeds, counts, options.k, options.max_clusters);
  check_importance(importance, valid, wide, leading);
  const Shape of_masks = mask_shape(layout, leading, rows);
  const Tensor* const saved[4] = {&masks, &density, &delta, &score};
  const Tensor* const grads[4] = {grad_masks, grad_density, grad_delta, grad_score};
  const char* const names[8] = {"masks",      "density",      "delta",      "score",
                                "grad_masks", "grad_density", "grad_delta", "grad_score"};
  for (int value = 0; value < 4; ++value) {
    const Shape& shape = value == 0 ? of_masks : leading;
    check_tensor(names[value], saved[value], {wide}, shape);
    check_tensor(names[value + 4], grads[value], {wide}, shape);
  }
  const size_t width = bytes_of(dtype_of(x));
  Tensor grad_x = empty_as(x);
  Tensor grad_importance = empty_cpu(importance ? leading : Shape{0}, wide);
  Tensor grad_learnable = empty_cpu({4}, masks.scalar_type());
  std::vector<double> sums(4 * layout.images(), 0.0);
  for_type_of(x, [&](auto zero) {
    using T = decltype(zero);
    parallel_images(layout.images(), [&](index_t b) {
      const index_t start = layout.start[b];
      const ImageInput image = image_of(x, valid, layout, b);
      const KnownDecisions decisions{
          values<index_t>(knn) + start * options.k, values<index_t>(parent) + start,
          values<index_t>(seeds) + b * (rows - 1), values<index_t>(counts) + b};
      const ImageImportance<T> weights{values<T>(importance, start),
                                       importance ? data<T>(grad_importance) + start : nullptr};
      cluster_image_backward<T>(image, options, decisions, weights,
                                values_of<T>(saved, layout, b, rows),
                                values_of<T>(grads, layout, b, rows),
                                data<char>(grad_x) + start * dim * width, sums.data() + 4 * b);
      Scratch::of_this_thread().trim();
    });
    for (index_t option = 0; option < 4; ++option) {
      double sum = 0;
      for (index_t b = 0; b < layout.images(); ++b) sum += sums[4 * b + option];
      data<T>(grad_learnable)[option] = static_cast<T>(sum);
    }
  });
  return {std::move(grad_x), std::move(grad_importance), std::move(grad_learnable)};
}

}  // namespace setok
