// Where both clusterings of an image start: its tokens and their distances, and from these
// neighbours, densities and parents.

#pragma once

#include "common.h"
#include "features.h"
#include "rows.h"

namespace setok {

// Places in the results of one image; knn and parent are null where they are known.
template <class T>
struct PeakOutput {
  T *density, *delta, *score;
  index_t *knn, *parent;
};

// The tokens that take part, and vectors over them, padded to `width` with zeros.
template <class T>
struct Peaks {
  const ImageInput& image;
  const Features<T> tokens;
  const index_t width;
  DistanceRows<T> rows;
  T *density, *delta, *score;
  T* number;  // 0, 1, 2, ...
  T* more;    // as many further vectors as were asked for, one after the other
  index_t *parent, *compact_of;

  // Images of more tokens than `dense_limit` keep no matrix of distances.
  Peaks(const ImageInput& image, const Options& options, index_t dense_limit, index_t more);
  // The rows refer to the tokens.
  Peaks(const Peaks&) = delete;
  Peaks& operator=(const Peaks&) = delete;

  bool dense() const { return rows.matrix != nullptr; }

  // A token of the image in the compact numbering, -1 where it takes no part.
  index_t compact(index_t place) const {
    return place < 0 || tokens.position == nullptr ? place : compact_of[place];
  }
};

// Neighbours into knn (n, k), in the compact numbering, and their density; `known` neighbours, in
// that of the image, are taken as they are.
template <class T>
void find_density(const Peaks<T>& peaks, const Options& options, const index_t* known,
                  index_t* knn);

// Parents, or the `known` ones, and as delta the distance to each, not scaled and 0 where there is
// none. `farthest` (width,), unless null, is filled with the largest distance of each token.
template <class T>
void find_parents(const Peaks<T>& peaks, const index_t* known, T* farthest);

// Spreads the results over the image; neighbours are at their places already, but compact.
template <class T>
void write_statistics(const Peaks<T>& peaks, index_t k, const PeakOutput<T>& out);

}  // namespace setok
