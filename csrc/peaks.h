// First steps of both clusterings of an image: tokens, distances, neighbours, densities, parents.

#pragma once

#include "common.h"
#include "features.h"
#include "rows.h"

namespace setok {

// Pointers to the results of one image; knn and parent are null in a replay.
template <class T>
struct PeakOutput {
  T *density, *delta, *score;
  index_t *knn, *parent;
};

// Usable tokens, and vectors over them, padded to `width` with zeros.
template <class T>
struct Peaks {
  const ImageInput& image;
  const Features<T> tokens;
  const index_t width;
  DistanceRows<T> rows;
  T *density, *delta, *score;
  T* number;  // 0, 1, 2, ...
  T* more;    // further vectors on request, concatenated
  index_t *parent, *compact_of;

  // Images with more tokens than `dense_limit` keep no distance matrix.
  Peaks(const ImageInput& image, const Options& options, index_t dense_limit, index_t more);
  // Not copyable: the rows point to the tokens.
  Peaks(const Peaks&) = delete;
  Peaks& operator=(const Peaks&) = delete;

  bool dense() const { return rows.dense(); }

  // Index of an image's token among the usable ones, -1 if it is not usable.
  index_t compact(index_t position) const {
    return position < 0 || tokens.position == nullptr ? position : compact_of[position];
  }
};

// Writes the neighbours into knn (n, k), as indices of usable tokens, and the density. `known`
// neighbours, as positions in the image, are replayed. `farthest` (width,), unless null, receives
// the maximum distance of each token.
template <class T>
void find_density(const Peaks<T>& peaks, const Options& options, const index_t* known, index_t* knn,
                  T* farthest);

// Finds the parents from the neighbours knn (n, k), or replays the `known` ones, and the unscaled
// distance to each as delta, 0 for none.
template <class T>
void find_parents(const Peaks<T>& peaks, index_t k, const index_t* knn, const index_t* known);

// Multiplies the scores by the importance (image.tokens,) unless it is null, up to the largest
// number: an infinite score would make its product with a scope of 0 NaN.
template <class T>
void weigh_scores(const Peaks<T>& peaks, const T* importance);

// Scatters the results over the image; neighbours are in place, as indices of usable tokens.
template <class T>
void write_statistics(const Peaks<T>& peaks, index_t k, const PeakOutput<T>& out);

}  // namespace setok
