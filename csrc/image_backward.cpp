#include "image_backward.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "density.h"
#include "scope_backward.h"
#include "token_backward.h"

namespace setok {
namespace {

template <class T>
struct Job {
  const ImageInput& image;
  const Options& options;
  const KnownDecisions& decisions;
  const ImageImportance<T>& importance;
  const ImageValues<T>& values;
  const ImageValues<T>& grad;
  const Features<T>& tokens;
  const index_t* compact_of;  // (image.tokens,)
  bool all_zero;
  Scratch& scratch;

  index_t compact(index_t position) const {
    return position < 0 || tokens.position == nullptr ? position : compact_of[position];
  }

  // Importance of a token.
  T weight(index_t i) const {
    return importance.value == nullptr ? T{1} : importance.value[tokens.position_of(i)];
  }

  // Value of a token in an optional tensor, 0 if the tensor is absent.
  double at(const T* of, index_t i) const {
    return of == nullptr ? 0 : static_cast<double>(of[tokens.position_of(i)]);
  }
};

template <class T>
Seeds<T> find_seeds(const Job<T>& job) {
  Seeds<T> seeds;
  seeds.ld = panels_of(job.tokens.n) * kPanel;
  if (job.grad.masks == nullptr) return seeds;
  const index_t dim = job.tokens.dim;
  for (index_t row = 0; row < job.options.max_clusters; ++row) {
    const index_t token = job.compact(job.decisions.seed(row));
    if (token < 0) continue;
    seeds.token.push_back(token);
    seeds.row.push_back(row);
  }
  T* x = job.scratch.template get<T>(Scratch::seeds, seeds.count() * dim);
  for (index_t c = 0; c < seeds.count(); ++c)
    std::copy_n(job.tokens.x + seeds.token[c] * dim, dim, x + c * dim);
  seeds.x = x;
  seeds.distance =
      job.scratch.template get<T>(Scratch::distances, panels_of(seeds.count()) * kPanel * seeds.ld);
  distance_rows<T>(job.tokens, nullptr, job.all_zero, x, seeds.count(), seeds.distance, seeds.ld,
                   job.scratch);
  return seeds;
}

// Turns the distances of the seeds into their gradients. Writes the sums of the gradients of the
// levels into `level_grad`, and grad_learnable.
template <class T>
void scope_gradients(const Job<T>& job, const Seeds<T>& seeds, T* level_grad,
                     double* grad_learnable) {
  const index_t n = job.tokens.n;
  std::fill_n(level_grad, seeds.ld, T{0});
  if (job.grad.masks == nullptr) return;
  const ScopeBackward<T> scope{job.options,
                               job.tokens.sigma,
                               job.tokens.slope,
                               job.tokens.position,
                               n,
                               job.values.mask_stride,
                               job.values.score,
                               job.values.masks,
                               job.grad.masks,
                               seeds.row.data(),
                               seeds.count(),
                               *job.decisions.count,
                               seeds.distance,
                               seeds.ld,
                               level_grad};
  std::vector<ScopeSums> parts((n + kScopeBlock - 1) / kScopeBlock);
  parallel_blocks(n, kScopeBlock, [&](index_t begin, index_t end) {
    parts[begin / kScopeBlock] = scope_backward(scope, begin, end);
  });
  ScopeSums sum{0, 0, 0, 0};
  for (const ScopeSums& part : parts) {
    sum.alone += part.alone;
    sum.score += part.score;
    sum.level += part.level;
    sum.reach += part.reach;
  }
  const double bandwidth = job.options.bandwidth, inverse = inverse_temperature<T>(job.options);
  grad_learnable[0] = sum.reach * inverse / (bandwidth * bandwidth);
  grad_learnable[1] = -sum.score * inverse;
  if (job.options.alpha == Alpha::sigmoid) {
    // `level` is -log2(e) (phi - offset - beta s) / temperature.
    grad_learnable[2] = sum.level * inverse * 0.6931471805599453;
    grad_learnable[3] = -sum.alone * inverse;
  }
  // The distance of a token to itself is the constant 0.
  for (index_t c = 0; c < seeds.count(); ++c) seeds.distance[c * seeds.ld + seeds.token[c]] = 0;
}

// Twice the gradients of the distances behind density and delta, in units of the image.
template <class T>
struct Slopes {
  T *density, *delta;  // (n,) gradient of each neighbour's distance, and of the parent's
  index_t* target;     // (n,) parent, or the farthest token
};

template <class T>
index_t farthest_from(const Job<T>& job, index_t i) {
  const index_t n = job.tokens.n, ld = panels_of(n) * kPanel;
  T* row = job.scratch.template get<T>(Scratch::row, kPanel * ld);
  distance_rows<T>(job.tokens, nullptr, job.all_zero, job.tokens.x + i * job.tokens.dim, 1, row, ld,
                   job.scratch);
  return std::max_element(row, row + n) - row;
}

// Maximum score before normalisation, and its token; 1 and -1 without normalisation.
template <class T>
std::pair<double, index_t> normaliser(const Job<T>& job) {
  if (!job.options.score_norm_max) return {1, -1};
  const auto raw = [&](index_t i) {
    const index_t position = job.tokens.position_of(i);
    const T score = job.values.density[position] * job.values.delta[position];
    return std::min(score * job.weight(i), std::numeric_limits<T>::max());
  };
  index_t top = job.compact(job.decisions.seed(0));
  if (top < 0) {
    top = 0;
    for (index_t i = 1; i < job.tokens.n; ++i)
      if (raw(i) > raw(top)) top = i;
  }
  // A subnormal maximum counts as 0, as in the forward pass.
  if (raw(top) < std::numeric_limits<T>::min()) return {1, -1};
  return {static_cast<double>(raw(top)), top};
}

template <class T>
Slopes<T> statistics_gradients(const Job<T>& job, const T* level_grad) {
  const index_t n = job.tokens.n, k = job.options.k;
  const double twice = 2 * static_cast<double>(job.tokens.slope);
  const double fall = -job.options.beta * inverse_temperature<T>(job.options);
  T* vectors = job.scratch.template get<T>(Scratch::products, 2 * n);
  Slopes<T> out{vectors, vectors + n, job.scratch.template get<index_t>(Scratch::candidate, n)};
  const auto of_score = [&](index_t i) {
    return job.at(job.grad.score, i) + fall * static_cast<double>(level_grad[i]);
  };
  const auto [largest, top] = normaliser(job);
  double norm_grad = 0;
  for (index_t i = 0; top >= 0 && i < n; ++i)
    norm_grad += of_score(i) * job.at(job.values.score, i);
  for (index_t i = 0; i < n; ++i) {
    const double rho = job.at(job.values.density, i), delta = job.at(job.values.delta, i);
    const double weight = static_cast<double>(job.weight(i));
    // A score beyond the largest number is that number.
    const bool clamped = rho * delta * weight > static_cast<double>(std::numeric_limits<T>::max());
    const double g = clamped ? 0 : of_score(i) - (i == top ? norm_grad : 0);
    if (job.importance.grad != nullptr)
      job.importance.grad[job.tokens.position_of(i)] = static_cast<T>(g * (rho * delta / largest));
    const index_t* knn = job.decisions.knn + job.tokens.position_of(i) * k;
    index_t found = 0;
    for (index_t slot = 0; slot < k; ++slot) found += job.compact(knn[slot]) >= 0;
    // Gradient times rho: raw scores may leave the range although the product does not.
    const double own = g * job.at(job.values.score, i) + rho * job.at(job.grad.density, i);
    out.density[i] = found == 0 ? T{0} : static_cast<T>(-twice * own / static_cast<double>(found));
    const bool cut = delta >= static_cast<double>(std::numeric_limits<T>::max());
    const double slope = twice * (g * (rho * weight / largest) + job.at(job.grad.delta, i));
    out.delta[i] = cut ? T{0} : static_cast<T>(slope);
    out.target[i] = job.compact(job.decisions.parent[job.tokens.position_of(i)]);
    if (out.target[i] < 0 && out.delta[i] != 0) out.target[i] = farthest_from(job, i);
  }
  return out;
}

template <class T>
Edges<T> edges_of(const Job<T>& job, const Slopes<T>& slopes) {
  const index_t n = job.tokens.n, k = job.options.k;
  return collect_edges<T>(
      n,
      [&](const auto& add) {
        for (index_t i = 0; i < n; ++i) {
          const index_t* knn = job.decisions.knn + job.tokens.position_of(i) * k;
          for (index_t slot = 0; slopes.density[i] != 0 && slot < k; ++slot) {
            const index_t j = job.compact(knn[slot]);
            if (j >= 0 && j != i) add(i, j, slopes.density[i]);
          }
          if (slopes.delta[i] != 0 && slopes.target[i] != i)
            add(i, slopes.target[i], slopes.delta[i]);
        }
      },
      job.scratch);
}

}  // namespace

template <class T>
void cluster_image_backward(const ImageInput& image, const Options& options,
                            const KnownDecisions& decisions, const ImageImportance<T>& importance,
                            const ImageValues<T>& values, const ImageValues<T>& grad, void* grad_x,
                            double* grad_learnable) {
  if (image.tokens == 0) return;
  if (importance.grad != nullptr) std::fill_n(importance.grad, image.tokens, T{0});
  Scratch& scratch = Scratch::of_this_thread();
  const Features<T> tokens = load_features<T>(image, options, scratch);
  const bool all_zero = options.scale == Scale::variance && tokens.sigma == 0;
  const size_t width = bytes_of(image.dtype);
  if (tokens.position != nullptr || all_zero)
    std::memset(grad_x, 0, width * static_cast<size_t>(image.tokens * image.dim));
  if (tokens.n == 0) return;
  const index_t ld = panels_of(tokens.n) * kPanel;
  auto* compact = scratch.get<index_t>(Scratch::lists, image.tokens);
  if (tokens.position != nullptr) {
    std::fill_n(compact, image.tokens, index_t{-1});
    for (index_t i = 0; i < tokens.n; ++i) compact[tokens.position[i]] = i;
  }
  const Job<T> job{image, options, decisions, importance, values,
                   grad,  tokens,  compact,   all_zero,   scratch};
  Seeds<T> seeds = find_seeds(job);
  T* level_grad = scratch.get<T>(Scratch::vectors, ld);
  scope_gradients(job, seeds, level_grad, grad_learnable);
  if (all_zero) return;
  const Slopes<T> slopes = statistics_gradients(job, level_grad);
  const Edges<T> edges = edges_of(job, slopes);
  token_gradients(image, tokens, seeds, edges, grad_x);
}

#define SETOK_INSTANTIATE(T)                                                                     \
  template void cluster_image_backward(const ImageInput&, const Options&, const KnownDecisions&, \
                                       const ImageImportance<T>&, const ImageValues<T>&,         \
                                       const ImageValues<T>&, void*, double*);
SETOK_INSTANTIATE(float)
SETOK_INSTANTIATE(double)

}  // namespace setok
