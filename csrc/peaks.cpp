#include "peaks.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "density.h"
#include "simd/kernels.h"
#include "stream.h"

namespace setok {
namespace {

// Number of rows of a task.
constexpr index_t kBlock = 32;

// Number of rows that meet all tokens at a time, without a distance matrix.
constexpr index_t kMet = 128;

template <class T>
bool all_equal(const Features<T>& tokens, const Options& options) {
  return options.scale == Scale::variance && tokens.sigma == 0;
}

// First neighbour of higher order, -1 for none. Neighbours are in ascending order of distance and
// index, so it is the nearest token of higher order.
template <class T>
index_t parent_among(const index_t* neighbour, index_t k, const T* density, index_t i) {
  for (index_t slot = 0; slot < k && neighbour[slot] >= 0; ++slot) {
    const index_t j = neighbour[slot];
    if (density[j] > density[i] || (density[j] == density[i] && j < i)) return j;
  }
  return -1;
}

// Nearest token of higher order than each token: a neighbour, but for the peaks, which meet all.
template <class T>
void search_parents(const Peaks<T>& peaks, index_t k, const index_t* knn) {
  const index_t n = peaks.tokens.n;
  std::vector<index_t> met;
  for (index_t i = 0; i < n; ++i) {
    peaks.parent[i] = parent_among(knn + i * k, k, peaks.density, i);
    if (peaks.parent[i] < 0) met.push_back(i);
  }
  const index_t count = static_cast<index_t>(met.size()), step = peaks.dense() ? count : kMet;
  for (index_t first = 0; first < count; first += step) {
    const index_t last = std::min(first + step, count);
    const T* block = peaks.dense() ? nullptr : peaks.rows.block(&met[first], last - first);
    parallel_blocks(last - first, kBlock / 4, [&](index_t begin, index_t end) {
      for (index_t c = begin; c < end; ++c) {
        const index_t i = met[first + c];
        const T* row = block == nullptr ? peaks.rows.row(i) : block + c * peaks.rows.ld;
        peaks.parent[i] = kernels<T>().nearest_higher(row, peaks.density, peaks.number, n, i);
      }
    });
  }
}

}  // namespace

template <class T>
Peaks<T>::Peaks(const ImageInput& image, const Options& options, index_t dense_limit, index_t more)
    : image(image),
      tokens(load_features<T>(image, options, Scratch::of_this_thread())),
      width(padded(tokens.n)),
      rows{tokens, all_equal(tokens, options), nullptr, panels_of(tokens.n) * kPanel, nullptr} {
  Scratch& scratch = Scratch::of_this_thread();
  const index_t n = tokens.n;
  density = scratch.get<T>(Scratch::vectors, (4 + more) * width);
  std::fill_n(density, (4 + more) * width, T{0});
  delta = density + width;
  score = delta + width;
  number = score + width;
  this->more = number + width;
  for (index_t i = 0; i < width; ++i) number[i] = static_cast<T>(i);
  parent = scratch.get<index_t>(Scratch::lists, width + image.tokens);
  compact_of = parent + width;
  if (tokens.position != nullptr) {
    std::fill_n(compact_of, image.tokens, index_t{-1});
    for (index_t i = 0; i < n; ++i) compact_of[tokens.position[i]] = i;
  }
  if (n <= dense_limit) {
    T* matrix = scratch.get<T>(Scratch::distances, rows.ld * rows.ld);
    distance_matrix(tokens, rows.all_zero, matrix, rows.ld, scratch);
    rows.matrix = matrix;
  } else {
    T* norm = scratch.get<T>(Scratch::row, rows.ld);
    norms_of_tokens(tokens, rows.ld, norm);
    rows.norm = norm;
  }
}

template <class T>
void find_density(const Peaks<T>& peaks, const Options& options, const index_t* known, index_t* knn,
                  T* farthest) {
  const index_t k = options.k;
  const Features<T>& tokens = peaks.tokens;
  const bool replay = known != nullptr;
  if (!replay && !peaks.dense())
    stream_neighbours(peaks.rows, k, options.include_self, knn, farthest);
  parallel_blocks(tokens.n, kBlock, [&](index_t begin, index_t end) {
    auto* candidate =
        Scratch::of_this_thread().get<int32_t>(Scratch::candidate, padded(tokens.n) + kLanes);
    for (index_t i = begin; i < end; ++i) {
      const index_t* chosen = replay ? known + tokens.position_of(i) * k : knn + i * k;
      if (!replay && peaks.dense()) {
        const T* row = peaks.rows.row(i);
        nearest_in_row(row, tokens.n, i, k, options.include_self, knn + i * k, candidate);
        if (farthest != nullptr) farthest[i] = kernels<T>().largest_of(row, tokens.n);
      }
      T sum = 0;
      index_t found = 0;
      for (index_t slot = 0; slot < k; ++slot) {
        const index_t j = replay ? peaks.compact(chosen[slot]) : chosen[slot];
        if (j < 0) continue;
        sum += peaks.rows.pair(i, j);
        ++found;
      }
      peaks.density[i] = local_density(sum, found, tokens.sigma);
    }
  });
}

template <class T>
void find_parents(const Peaks<T>& peaks, index_t k, const index_t* knn, const index_t* known) {
  const Features<T>& tokens = peaks.tokens;
  if (known != nullptr) {
    for (index_t i = 0; i < tokens.n; ++i)
      peaks.parent[i] = peaks.compact(known[tokens.position_of(i)]);
  } else {
    // Padding: precedes no token, however low its density.
    std::fill(peaks.density + tokens.n, peaks.density + peaks.width,
              -std::numeric_limits<T>::infinity());
    search_parents(peaks, k, knn);
  }
  parallel_blocks(tokens.n, kBlock, [&](index_t begin, index_t end) {
    for (index_t i = begin; i < end; ++i)
      if (peaks.parent[i] >= 0) peaks.delta[i] = peaks.rows.pair(i, peaks.parent[i]);
  });
}

template <class T>
void weigh_scores(const Peaks<T>& peaks, const T* importance) {
  if (importance == nullptr) return;
  for (index_t i = 0; i < peaks.tokens.n; ++i)
    peaks.score[i] = std::min(peaks.score[i] * importance[peaks.tokens.position_of(i)],
                              std::numeric_limits<T>::max());
}

template <class T>
void write_statistics(const Peaks<T>& peaks, index_t k, const PeakOutput<T>& out) {
  const Features<T>& tokens = peaks.tokens;
  index_t next = tokens.n - 1;
  // Backwards, because rows move within knn.
  for (index_t position = peaks.image.tokens - 1; position >= 0; --position) {
    const bool here = next >= 0 && tokens.position_of(next) == position;
    out.density[position] = here ? peaks.density[next] : 0;
    out.delta[position] = here ? peaks.delta[next] : 0;
    out.score[position] = here ? peaks.score[next] : 0;
    if (out.knn != nullptr) {
      index_t* knn = out.knn + position * k;
      if (here) {
        const index_t parent = peaks.parent[next];
        out.parent[position] = parent < 0 ? -1 : tokens.position_of(parent);
        if (tokens.position != nullptr) {
          std::memmove(knn, out.knn + next * k, k * sizeof(index_t));
          for (index_t slot = 0; slot < k; ++slot)
            if (knn[slot] >= 0) knn[slot] = tokens.position[knn[slot]];
        }
      } else {
        out.parent[position] = -1;
        std::fill_n(knn, k, index_t{-1});
      }
    }
    if (here) --next;
  }
}

#define SETOK_INSTANTIATE(T)                                                                 \
  template struct Peaks<T>;                                                                  \
  template void find_density(const Peaks<T>&, const Options&, const index_t*, index_t*, T*); \
  template void find_parents(const Peaks<T>&, index_t, const index_t*, const index_t*);      \
  template void weigh_scores(const Peaks<T>&, const T*);                                     \
  template void write_statistics(const Peaks<T>&, index_t, const PeakOutput<T>&);
SETOK_INSTANTIATE(float)
SETOK_INSTANTIATE(double)
#undef SETOK_INSTANTIATE

}  // namespace setok
