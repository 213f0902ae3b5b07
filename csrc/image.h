// The clustering of one image: decisions, or known decisions replayed, and their values.

#pragma once

#include "common.h"
#include "peaks.h"

namespace setok {

// Places in the results of one image. Masks have max_clusters + 1 rows `mask_stride` apart.
template <class T>
struct ImageOutput {
  T* masks;
  index_t mask_stride;
  PeakOutput<T> peaks;
  index_t *labels, *seeds, *count;
};

// Known decisions of one image; knn is null where they are to be made.
struct KnownDecisions {
  const index_t *knn, *parent, *seeds, *count;

  // Seed of a row, -1 where there is none: a count below the number of seeds cuts them short.
  index_t seed(index_t row) const { return row < *count ? seeds[row] : -1; }
};

// Images of more tokens than `dense_limit` keep no matrix of distances.
template <class T>
void cluster_image(const ImageInput& image, const Options& options, const KnownDecisions& known,
                   index_t dense_limit, const ImageOutput<T>& out);

}  // namespace setok
