// Operation `setok::dpc_knn`: the tokens of highest score are centres, and each token goes to the
// nearest centre.

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "checks.h"
#include "density.h"
#include "operators.h"
#include "peaks.h"
#include "simd/kernels.h"
#include "tensors.h"

namespace setok {
namespace {

// Number of tokens of a labelling task, and of centres whose rows are computed at a time.
constexpr index_t kBlock = 256, kRows = 64;

struct Choice {
  index_t columns;  // number of rows
  double threshold;
  index_t min_clusters;
  bool by_index, capped;
};

// User's control of the scores and centres of one image.
template <class T>
struct HardGuide {
  const T *noise, *importance;  // (tokens,) or null
  index_t budget;               // maximum number of centres, at most the number of rows
};

// Pointers to the results of one image.
template <class T>
struct HardOutput {
  PeakOutput<T> peaks;
  index_t *labels, *centres, *count;
};

// True if a comes before b by descending value, ties by index. NaN comes first, as in torch.sort.
template <class T>
bool ranks_before(const T* value, index_t a, index_t b) {
  const T first = value[a], second = value[b];
  if (std::isnan(first) || std::isnan(second))
    return std::isnan(first) && (!std::isnan(second) || a < b);
  return first > second || (first == second && a < b);
}

// cap (n,): minimum of `farthest` among the tokens that do not precede the token, itself included.
template <class T>
void find_eccentricity_cap(const T* density, const T* farthest, index_t n, T* cap) {
  std::vector<index_t> order(n);
  std::iota(order.begin(), order.end(), index_t{0});
  std::sort(order.begin(), order.end(),
            [=](index_t a, index_t b) { return ranks_before(density, a, b); });
  // A token of density NaN precedes no token and is preceded by none.
  const auto ordered =
      std::find_if(order.begin(), order.end(), [=](index_t i) { return !std::isnan(density[i]); });
  T lowest = std::numeric_limits<T>::infinity();
  for (auto i = order.begin(); i != ordered; ++i) lowest = std::min(lowest, farthest[*i]);
  for (auto i = order.end(); i != ordered;) {
    --i;
    cap[*i] = lowest = std::min(lowest, farthest[*i]);
  }
  for (auto i = order.begin(); i != ordered; ++i) cap[*i] = lowest;
}

// Adds the noise to the density, and computes delta and score; `factor` scales the distances.
template <class T>
void find_score(const Peaks<T>& peaks, index_t k, const index_t* knn, const HardGuide<T>& guide,
                bool capped, T factor) {
  const index_t n = peaks.tokens.n;
  for (index_t i = 0; guide.noise != nullptr && i < n; ++i)
    peaks.density[i] += guide.noise[peaks.tokens.position_of(i)];
  T *farthest = peaks.more, *cap = farthest + peaks.width;
  find_parents(peaks, k, knn, nullptr);
  if (capped)
    find_eccentricity_cap(peaks.density, farthest, n, cap);
  else
    std::fill_n(cap, n, *std::max_element(farthest, farthest + n));
  for (index_t i = 0; i < n; ++i) {
    const T bounded = peaks.parent[i] < 0 ? cap[i] : std::min(peaks.delta[i], cap[i]);
    // The range is restored after the root, because its square may overflow. An infinite delta at
    // density 0 would make the score NaN.
    const T delta = std::ldexp(std::sqrt(factor * bounded), peaks.tokens.exponent);
    peaks.delta[i] = std::min(delta, std::numeric_limits<T>::max());
    peaks.score[i] = peaks.density[i] * peaks.delta[i];
  }
  weigh_scores(peaks, guide.importance);
}

template <class T>
std::vector<index_t> choose_centres(const Peaks<T>& peaks, const Choice& choice, index_t budget) {
  const index_t n = peaks.tokens.n, limit = std::min(n, budget);
  const T *score = peaks.score, threshold = static_cast<T>(choice.threshold);
  const index_t above = std::count_if(score, score + n, [=](T value) { return value > threshold; });
  const index_t count = std::min(limit, above > 0 ? above : choice.min_clusters);
  const auto before = [=](index_t a, index_t b) { return ranks_before(score, a, b); };
  std::vector<index_t> centres(n);
  std::iota(centres.begin(), centres.end(), index_t{0});
  std::nth_element(centres.begin(), centres.begin() + count, centres.end(), before);
  centres.resize(count);
  if (choice.by_index)
    std::sort(centres.begin(), centres.end());
  else
    std::sort(centres.begin(), centres.end(), before);
  return centres;
}

// nearest (n,): row of each token's centre, as a number of the same width as the distances.
template <class T>
void find_nearest(const Peaks<T>& peaks, const std::vector<index_t>& centres, T* distance,
                  T* nearest) {
  const Features<T>& tokens = peaks.tokens;
  const index_t count = static_cast<index_t>(centres.size()), ld = peaks.rows.ld;
  const index_t rows = peaks.dense() ? count : kRows;
  std::fill_n(distance, tokens.n, std::numeric_limits<T>::infinity());
  for (index_t first = 0; first < count; first += rows) {
    const index_t last = std::min(first + rows, count);
    const T* computed = peaks.dense() ? nullptr : peaks.rows.block(&centres[first], last - first);
    parallel_blocks(tokens.n, kBlock, [&](index_t begin, index_t end) {
      for (index_t c = first; c < last; ++c) {
        const T* row = peaks.dense() ? peaks.rows.row(centres[c]) : computed + (c - first) * ld;
        kernels<T>().take_centre(row + begin, end - begin, c, distance + begin, nearest + begin);
      }
    });
  }
}

template <class T>
void cluster_image(const ImageInput& image, const Options& options, const Choice& choice,
                   const HardGuide<T>& guide, index_t dense_limit, const HardOutput<T>& out) {
  const Peaks<T> peaks(image, options, dense_limit, 2);
  const Features<T>& tokens = peaks.tokens;
  std::fill_n(out.labels, image.tokens, index_t{-1});
  std::fill_n(out.centres, choice.columns, index_t{-1});
  *out.count = 0;
  if (tokens.n > 0) {
    find_density(peaks, options, nullptr, out.peaks.knn, peaks.more);
    find_score(peaks, options.k, out.peaks.knn, guide, choice.capped,
               static_cast<T>(options.factor));
    const std::vector<index_t> centres = choose_centres(peaks, choice, guide.budget);
    T *distance = peaks.more, *nearest = distance + peaks.width;
    find_nearest(peaks, centres, distance, nearest);
    *out.count = static_cast<index_t>(centres.size());
    for (index_t i = 0; i < tokens.n && !centres.empty(); ++i)
      out.labels[tokens.position_of(i)] = static_cast<index_t>(nearest[i]);
    // A centre keeps its own row even if an equal token is a centre too.
    for (index_t c = 0; c < *out.count; ++c)
      out.labels[out.centres[c] = tokens.position_of(centres[c])] = c;
  }
  write_statistics(peaks, options.k, out.peaks);
}

}  // namespace

// x (B, N, D), or (T, D) with cu_seqlens, noise and importance (B, N) or (T,); all
// contiguous.
std::array<Tensor, 8> dpc_knn(const Tensor& x, const Tensor* valid, const Tensor* cu_seqlens,
                              int64_t max_seqlen, const Tensor* noise, const Tensor* importance,
                              const Tensor* budget, int64_t k, int64_t num_clusters,
                              double threshold, int64_t min_clusters, bool by_index, bool capped,
                              int64_t dense_limit) {
  const Layout layout = check_tokens(x, valid, cu_seqlens, max_seqlen);
  const Shape leading = leading_of(x);
  const ScalarType wide = wide_of(x);
  check_tensor("noise", noise, {wide}, leading);
  check_importance(importance, valid, wide, leading);
  // A budget above the number of rows is bounded by it.
  check_budget(budget, layout.images(), kMostCount);
  check_count("k", k);
  // Without num_clusters there is one column per token, and none if all images are empty.
  check_range("num_clusters", num_clusters, 0, kMostCount);
  check_count("min_clusters", min_clusters);
  if (std::isnan(threshold)) refuse("threshold", "a number", threshold);
  Options options{};
  options.k = k;
  options.scale = Scale::fixed;
  options.factor = 1.0 / static_cast<double>(x.size(-1));
  options.include_self = true;
  const Choice choice{num_clusters, threshold, min_clusters, by_index, capped};
  Shape neighbours = leading;
  neighbours.push_back(k);
  const index_t images = layout.images();
  std::array<Tensor, 8> results{empty_index(leading),     empty_index({images, num_clusters}),
                                empty_index({images}),    empty_cpu(leading, wide),
                                empty_cpu(leading, wide), empty_cpu(leading, wide),
                                empty_index(neighbours),  empty_index(leading)};
  for_type_of(x, [&](auto zero) {
    using T = decltype(zero);
    parallel_images(images, [&](index_t b) {
      const index_t start = layout.start[b];
      const HardOutput<T> out{
          {data<T>(std::get<3>(results)) + start, data<T>(std::get<4>(results)) + start,
           data<T>(std::get<5>(results)) + start, data<index_t>(std::get<6>(results)) + start * k,
           data<index_t>(std::get<7>(results)) + start},
          data<index_t>(std::get<0>(results)) + start,
          data<index_t>(std::get<1>(results)) + b * num_clusters,
          data<index_t>(std::get<2>(results)) + b};
      const index_t most = budget ? values<index_t>(*budget)[b] : num_clusters;
      const HardGuide<T> guide{values<T>(noise, start), values<T>(importance, start),
                               std::min(most, num_clusters)};
      cluster_image(image_of(x, valid, layout, b), options, choice, guide, dense_limit, out);
      Scratch::of_this_thread().trim();
    });
  });
  return results;
}

}  // namespace setok
