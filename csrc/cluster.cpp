// The operation `setok_cpu::cluster`: checks, results, and one image after the other or at once.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

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

struct Batch {
  index_t images, tokens;  // tokens of all images
  std::vector<index_t> start;
};

template <class T>
void run(const Tensor& x, const bool* valid, const Batch& batch, const Options& options,
         const std::optional<Tensor> (&known)[4], index_t dense_limit, bool packed,
         const Results& results) {
  const auto* input = static_cast<const char*>(x.const_data_ptr());
  const index_t dim = x.size(-1), rows = options.max_clusters + 1, k = options.k;
  const Dtype dtype = dtype_of(x);
  const size_t width = dtype == Dtype::f64 ? 8 : dtype == Dtype::f32 ? 4 : 2;
  const auto index_of = [&](const std::optional<Tensor>& tensor) {
    return tensor ? static_cast<const index_t*>(tensor->const_data_ptr()) : nullptr;
  };
  const index_t *knn = index_of(known[0]), *parent = index_of(known[1]);
  const index_t *seeds = index_of(known[2]), *counts = index_of(known[3]);
  const bool replay = knn != nullptr || known[0].has_value();
  static const index_t kNothing[1] = {-1};

  const auto one = [&](index_t b) {
    const index_t start = batch.start[b], tokens = batch.start[b + 1] - start;
    const ImageInput image{input + start * dim * width, dtype,
                           valid == nullptr ? nullptr : valid + start, tokens, dim};
    KnownDecisions decisions{nullptr, nullptr, nullptr, nullptr};
    if (replay)
      decisions = {knn == nullptr ? kNothing : knn + start * k, parent + start,
                   seeds + b * (rows - 1), counts + b};
    T* masks = data<T>(std::get<0>(results));
    const ImageOutput<T> out{
        packed ? masks + start : masks + b * rows * tokens,
        packed ? batch.tokens : tokens,
        data<T>(std::get<3>(results)) + start,
        data<T>(std::get<4>(results)) + start,
        data<T>(std::get<5>(results)) + start,
        data<index_t>(std::get<2>(results)) + start,
        replay ? nullptr : data<index_t>(std::get<6>(results)) + start * k,
        replay ? nullptr : data<index_t>(std::get<7>(results)) + start,
        replay ? nullptr : data<index_t>(std::get<8>(results)) + b * (rows - 1),
        replay ? nullptr : data<index_t>(std::get<1>(results)) + b};
    cluster_image<T>(image, options, decisions, dense_limit, out);
    Scratch::of_this_thread().trim();
  };
  parallel_images(batch.images, one);
}

// x (B, N, D), or (T, D) with cu_seqlens; contiguous, as are all others. The four decisions come
// together or not at all; with them, the last three results and the counts are empty.
Results cluster(const Tensor& x, std::optional<Tensor> valid, std::optional<Tensor> cu_seqlens,
                std::optional<Tensor> knn, std::optional<Tensor> parent,
                std::optional<Tensor> seeds, std::optional<Tensor> counts, int64_t k,
                int64_t max_clusters, int64_t kernel, int64_t alpha, double bandwidth, double beta,
                double temperature, double offset, int64_t scale, double factor,
                bool score_norm_max, bool distinct_seeds, bool include_self, double stop_residual,
                double min_mass, int64_t dense_limit) {
  const Options options{k,
                        max_clusters,
                        static_cast<Kernel>(kernel),
                        static_cast<Alpha>(alpha),
                        bandwidth,
                        beta,
                        temperature,
                        offset,
                        static_cast<Scale>(scale),
                        factor,
                        score_norm_max,
                        distinct_seeds,
                        include_self,
                        stop_residual,
                        min_mass};
  const bool packed = cu_seqlens.has_value(), replay = knn.has_value();
  STD_TORCH_CHECK(x.dim() == (packed ? 2 : 3), "x: wrong rank");
  STD_TORCH_CHECK(x.is_contiguous(), "x: expected a contiguous tensor");
  const bool wide = dtype_of(x) == Dtype::f64;
  Batch batch;
  if (packed) {
    batch.start = offsets_of(*cu_seqlens);
    batch.images = cu_seqlens->size(0) - 1;
    batch.tokens = x.size(0);
  } else {
    batch.images = x.size(0);
    batch.tokens = batch.images * x.size(1);
    for (index_t b = 0; b <= batch.images; ++b) batch.start.push_back(b * x.size(1));
  }
  const index_t images = batch.images, rows = max_clusters + 1;
  const auto floats = [&](std::vector<int64_t> shape) {
    return empty_cpu(shape, wide ? ScalarType::Double : ScalarType::Float);
  };
  const auto indices = [&](std::vector<int64_t> shape) { return empty_index(shape); };
  std::vector<int64_t> leading = {batch.tokens};
  std::vector<int64_t> masks = {rows, batch.tokens};
  if (!packed) {
    leading = {images, x.size(1)};
    masks = {images, rows, x.size(1)};
  }
  std::vector<int64_t> neighbours = leading;
  neighbours.push_back(k);
  const std::vector<int64_t> none = {0};
  const Results results{floats(masks),
                        indices(replay ? none : std::vector<int64_t>{images}),
                        indices(leading),
                        floats(leading),
                        floats(leading),
                        floats(leading),
                        indices(replay ? none : neighbours),
                        indices(replay ? none : leading),
                        indices(replay ? none : std::vector<int64_t>{images, max_clusters})};
  const bool* mask = valid ? static_cast<const bool*>(valid->const_data_ptr()) : nullptr;
  const std::optional<Tensor> known[4] = {knn, parent, seeds, counts};
  if (wide)
    run<double>(x, mask, batch, options, known, dense_limit, packed, results);
  else
    run<float>(x, mask, batch, options, known, dense_limit, packed, results);
  return results;
}

}  // namespace
}  // namespace setok

STABLE_TORCH_LIBRARY_FRAGMENT(setok_cpu, m) {
  m.def(
      "cluster(Tensor x, Tensor? valid, Tensor? cu_seqlens, Tensor? knn, Tensor? parent, "
      "Tensor? seeds, Tensor? counts, int k, int max_clusters, int kernel, int alpha, "
      "float bandwidth, float beta, float temperature, float offset, int scale, float factor, "
      "bool score_norm_max, bool distinct_seeds, bool include_self, float stop_residual, "
      "float min_mass, int dense_limit) -> "
      "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(setok_cpu, CPU, m) { m.impl("cluster", TORCH_BOX(&setok::cluster)); }
