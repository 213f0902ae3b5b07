// Clustering of one image: new or replayed decisions, and their values.

#pragma once

#include "common.h"
#include "peaks.h"

namespace setok {

// Pointers to the results of one image. Masks have max_clusters + 1 rows `mask_stride` apart.
template <class T>
struct ImageOutput {
  T* masks;
  index_t mask_stride;
  PeakOutput<T> peaks;
  index_t *labels, *seeds, *count;
};

// Replayed decisions of one image; knn is null without a replay.
struct KnownDecisions {
  const index_t *knn, *parent, *seeds, *count;

  // Seed of a row, -1 for none: seeds after `count` are ignored.
  index_t seed(index_t row) const { return row < *count ? seeds[row] : -1; }
};

// User's control of the seeds of one image.
template <class T>
struct Guide {
  const T* importance;  // (tokens,) weights of the scores; null for 1
  index_t budget;       // maximum number of seeds, at most max_clusters
};

// Images with more tokens than `dense_limit` keep no distance matrix.
template <class T>
void cluster_image(const ImageInput& image, const Options& options, const KnownDecisions& known,
                   const Guide<T>& guide, index_t dense_limit, const ImageOutput<T>& out);

}  // namespace setok
