#include "image.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "delta.h"
#include "density.h"
#include "rows.h"
#include "scope.h"
#include "stream.h"

namespace setok {
namespace {

// Rows of tokens for one task.
constexpr index_t kBlock = 32;

// Padded vectors over the tokens that take part, one after the other in a scratch buffer.
template <class T>
struct Vectors {
  T *density, *delta, *score, *number, *threshold, *scope, *next, *mask, *eligible, *best, *label;
  index_t *parent, *compact;

  Vectors(index_t width, index_t tokens, Scratch& scratch) {
    T* at = scratch.get<T>(Scratch::vectors, 11 * width);
    for (T** vector : {&density, &delta, &score, &number, &threshold, &scope, &next, &mask,
                       &eligible, &best, &label}) {
      *vector = at;
      std::fill_n(at, width, T{0});
      at += width;
    }
    for (index_t i = 0; i < width; ++i) number[i] = static_cast<T>(i);
    parent = scratch.get<index_t>(Scratch::lists, width + tokens);
    compact = parent + width;
  }
};

// Where the decisions of an image meet the numbering of the tokens that take part.
template <class T>
struct Job {
  const ImageInput& image;
  const Options& options;
  const KnownDecisions& known;
  const ImageOutput<T>& out;
  const Features<T>& tokens;
  const DistanceRows<T>& rows;
  Vectors<T>& v;

  // A token of the image in the compact numbering, -1 where it takes no part.
  index_t compact(index_t place) const {
    return place < 0 || tokens.position == nullptr ? place : v.compact[place];
  }
};

template <class T>
void find_density(const Job<T>& job) {
  const index_t k = job.options.k;
  const bool replay = job.known.knn != nullptr, dense = job.rows.matrix != nullptr;
  const Features<T>& tokens = job.tokens;
  const bool include_self = job.options.include_self;
  if (!replay && !dense) stream_neighbours(tokens, job.rows.all_zero, k, include_self, job.out.knn);
  parallel_blocks(tokens.n, kBlock, [&](index_t begin, index_t end) {
    auto* candidate =
        Scratch::of_this_thread().get<int32_t>(Scratch::candidate, padded(tokens.n) + kLanes);
    for (index_t i = begin; i < end; ++i) {
      const index_t* chosen = replay ? job.known.knn + tokens.place(i) * k : job.out.knn + i * k;
      if (!replay && dense)
        nearest_in_row(job.rows.row(i), tokens.n, i, k, include_self, job.out.knn + i * k,
                       candidate);
      T sum = 0;
      index_t found = 0;
      for (index_t slot = 0; slot < k; ++slot) {
        const index_t j = replay ? job.compact(chosen[slot]) : chosen[slot];
        if (j < 0) continue;
        sum += job.rows.pair(i, j);
        ++found;
      }
      job.v.density[i] = local_density(sum, found, tokens.sigma);
    }
  });
}

template <class T>
T largest_of_row(const DistanceRows<T>& rows, index_t i) {
  const T* row = rows.row(i);
  return *std::max_element(row, row + rows.tokens.n);
}

template <class T>
void find_delta(const Job<T>& job) {
  const Features<T>& tokens = job.tokens;
  const index_t n = tokens.n, width = padded(n);
  index_t* parent = job.v.parent;
  const bool replay = job.known.knn != nullptr, dense = job.rows.matrix != nullptr;
  std::fill(job.v.density + n, job.v.density + width, T{-1});
  if (!replay && !dense) stream_parents(tokens, job.rows.all_zero, job.v.density, parent);
  parallel_blocks(n, kBlock, [&](index_t begin, index_t end) {
    for (index_t i = begin; i < end; ++i) {
      if (replay)
        parent[i] = job.compact(job.known.parent[tokens.place(i)]);
      else if (dense)
        parent[i] = nearest_higher(job.rows.row(i), job.v.density, job.v.number, n, i);
      if (parent[i] >= 0) job.v.delta[i] = job.rows.pair(i, parent[i]);
    }
  });
  for (index_t i = 0; i < n; ++i) {
    if (parent[i] < 0) job.v.delta[i] = largest_of_row(job.rows, i);
    // An infinite delta at density 0 would make the score NaN.
    job.v.delta[i] = std::min(tokens.sigma * job.v.delta[i], std::numeric_limits<T>::max());
  }
}

template <class T>
void find_score(const Job<T>& job) {
  const index_t n = job.tokens.n;
  T* score = job.v.score;
  for (index_t i = 0; i < n; ++i) score[i] = job.v.density[i] * job.v.delta[i];
  if (!job.options.score_norm_max) return;
  index_t top = job.known.knn != nullptr ? job.compact(job.known.seeds[0]) : -1;
  if (top < 0) top = std::max_element(score, score + n) - score;
  const T largest = score[top];
  // A subnormal maximum counts as 0, as in the reference.
  if (largest < std::numeric_limits<T>::min()) return;
  for (index_t i = 0; i < n; ++i) score[i] = score[i] / largest;
}

template <class T>
void write_mask(const Job<T>& job, index_t row, const T* mask) {
  T* to = job.out.masks + row * job.out.mask_stride;
  if (job.tokens.position == nullptr) {
    std::copy_n(mask, job.tokens.n, to);
    return;
  }
  std::fill_n(to, job.image.tokens, T{0});
  for (index_t i = 0; i < job.tokens.n; ++i) to[job.tokens.position[i]] = mask[i];
}

template <class T>
ScopeState<T> initial_scope(const Job<T>& job) {
  const Options& options = job.options;
  const index_t n = job.tokens.n, width = padded(n);
  std::fill_n(job.v.scope, n, T{1});
  std::fill_n(job.v.eligible, n, T{1});
  std::fill_n(job.v.best, width, T{-1});
  ScopeState<T> state{width,           job.tokens.sigma, job.v.number, job.v.score,
                      job.v.threshold, job.v.scope,      job.v.next,   job.v.mask,
                      job.v.eligible,  job.v.best,       job.v.label};
  set_options(state, options);
  return state;
}

// Chooses the seeds and writes their masks; returns how many there are.
template <class T>
index_t choose_seeds(const Job<T>& job, ScopeState<T>& state) {
  const Options& options = job.options;
  index_t count = 0;
  Priority<T> most = priority(state);
  while (count < options.max_clusters && most.token >= 0) {
    const index_t seed = most.token;
    const T mass = scope_step(state, options.kernel, options.alpha, job.rows.row(seed));
    if (options.min_mass > 0 && !(mass >= static_cast<T>(options.min_mass))) break;
    write_mask(job, count, state.mask);
    commit(state, count);
    job.out.seeds[count++] = job.tokens.place(seed);
    if (options.distinct_seeds) state.eligible[seed] = 0;
    most = priority(state);
    const T mean = most.scope / static_cast<T>(job.tokens.n);
    if (!(mean > static_cast<T>(options.stop_residual))) break;
  }
  return count;
}

// Writes the masks of known seeds; an absent one takes nothing.
template <class T>
void replay_seeds(const Job<T>& job, ScopeState<T>& state) {
  for (index_t row = 0; row < job.options.max_clusters; ++row) {
    const index_t seed = job.compact(job.known.seeds[row]);
    if (seed < 0) {
      std::fill_n(state.mask, state.width, T{0});
      write_mask(job, row, state.mask);
      continue;
    }
    scope_step(state, job.options.kernel, job.options.alpha, job.rows.row(seed));
    write_mask(job, row, state.mask);
    std::swap(state.scope, state.next);
  }
}

// Row of the largest mask of every valid token, read from the masks.
template <class T>
void labels_from_masks(const Job<T>& job) {
  for (index_t i = 0; i < job.image.tokens; ++i) {
    if (job.image.valid != nullptr && !job.image.valid[i]) continue;
    const T* mask = job.out.masks + i;
    index_t label = 0;
    for (index_t row = 1; row <= job.options.max_clusters; ++row)
      if (mask[row * job.out.mask_stride] > mask[label * job.out.mask_stride]) label = row;
    job.out.labels[i] = label;
  }
}

// Whether a token of the image is valid but takes no part, being non-finite.
template <class T>
bool is_absent(const Job<T>& job, index_t i) {
  return (job.image.valid == nullptr || job.image.valid[i]) && job.v.compact[i] < 0;
}

template <class T>
void find_scope(const Job<T>& job) {
  ScopeState<T> state = initial_scope(job);
  const bool replay = job.known.knn != nullptr;
  const index_t rows = job.options.max_clusters + 1;
  index_t count;
  if (replay) {
    count = *job.known.count;
    replay_seeds(job, state);
  } else {
    count = choose_seeds(job, state);
    for (index_t row = count + 1; row < rows; ++row)
      std::fill_n(job.out.masks + row * job.out.mask_stride, job.image.tokens, T{0});
    *job.out.count = count;
  }
  // What nobody took is the residual; a token that takes no part is all residual.
  write_mask(job, count, state.scope);
  if (replay) {
    if (count < rows - 1)
      std::fill_n(job.out.masks + (rows - 1) * job.out.mask_stride, job.image.tokens, T{0});
  }
  T* residual = job.out.masks + count * job.out.mask_stride;
  if (job.tokens.position != nullptr) {
    for (index_t i = 0; i < job.image.tokens; ++i)
      if (is_absent(job, i)) residual[i] = 1;
  }
  if (replay) return labels_from_masks(job);
  for (index_t i = 0; i < job.image.tokens; ++i)
    if (job.image.valid == nullptr || job.image.valid[i]) job.out.labels[i] = count;
  for (index_t i = 0; i < job.tokens.n; ++i)
    if (!(state.scope[i] > state.best[i]))
      job.out.labels[job.tokens.place(i)] = static_cast<index_t>(state.label[i]);
}

// Spreads the compact results over the image; backwards, so that rows may move within knn.
template <class T>
void write_statistics(const Job<T>& job) {
  const Features<T>& tokens = job.tokens;
  const index_t k = job.options.k;
  const bool replay = job.known.knn != nullptr;
  index_t next = tokens.n - 1;
  for (index_t place = job.image.tokens - 1; place >= 0; --place) {
    const bool here = next >= 0 && tokens.place(next) == place;
    job.out.density[place] = here ? job.v.density[next] : 0;
    job.out.delta[place] = here ? job.v.delta[next] : 0;
    job.out.score[place] = here ? job.v.score[next] : 0;
    if (!replay) {
      index_t* knn = job.out.knn + place * k;
      if (here) {
        const index_t parent = job.v.parent[next];
        job.out.parent[place] = parent < 0 ? -1 : tokens.place(parent);
        if (tokens.position != nullptr) {
          std::memmove(knn, job.out.knn + next * k, k * sizeof(index_t));
          for (index_t slot = 0; slot < k; ++slot)
            if (knn[slot] >= 0) knn[slot] = tokens.position[knn[slot]];
        }
      } else {
        job.out.parent[place] = -1;
        std::fill_n(knn, k, index_t{-1});
      }
    }
    if (here) --next;
  }
}

}  // namespace

template <class T>
void cluster_image(const ImageInput& image, const Options& options, const KnownDecisions& known,
                   index_t dense_limit, const ImageOutput<T>& out) {
  Scratch& scratch = Scratch::of_this_thread();
  const Features<T> tokens = load_features<T>(image, options, scratch);
  const index_t n = tokens.n, width = padded(n);
  const bool dense = n <= dense_limit;
  const bool all_zero = options.scale == Scale::variance && tokens.sigma == 0;
  Vectors<T> v(width, image.tokens, scratch);
  DistanceRows<T> rows{tokens, all_zero, nullptr, panels_of(n) * kPanel, nullptr};
  if (dense) {
    T* matrix = scratch.get<T>(Scratch::distances, rows.ld * rows.ld);
    distance_matrix(tokens, all_zero, matrix, rows.ld, scratch);
    rows.matrix = matrix;
  } else {
    rows.buffer = scratch.get<T>(Scratch::row, width);
  }
  if (tokens.position != nullptr) {
    std::fill_n(v.compact, image.tokens, index_t{-1});
    for (index_t i = 0; i < n; ++i) v.compact[tokens.position[i]] = i;
  }
  const Job<T> job{image, options, known, out, tokens, rows, v};
  std::fill_n(out.labels, image.tokens, index_t{-1});
  if (known.knn == nullptr) std::fill_n(out.seeds, options.max_clusters, index_t{-1});
  if (n > 0) {
    find_density(job);
    find_delta(job);
    find_score(job);
  }
  find_scope(job);
  write_statistics(job);
}

template void cluster_image(const ImageInput&, const Options&, const KnownDecisions&, index_t,
                            const ImageOutput<float>&);
template void cluster_image(const ImageInput&, const Options&, const KnownDecisions&, index_t,
                            const ImageOutput<double>&);

}  // namespace setok
