// Gradients of the clustering of one image with respect to tokens and hyper-parameters.

#pragma once

#include "common.h"
#include "image.h"

namespace setok {

// Values of one image, or their gradients, which may be null. Rows of the masks are `mask_stride`
// apart.
template <class T>
struct ImageValues {
  const T* masks;
  index_t mask_stride;
  const T *density, *delta, *score;
};

// Weights of the scores of one image and their gradients, both (tokens,); null without weights.
template <class T>
struct ImageImportance {
  const T* value;
  T* grad;
};

// Writes grad_x (tokens, dim) in the dtype of the image, and the gradients of the importance and of
// bandwidth, beta, temperature and offset.
template <class T>
void cluster_image_backward(const ImageInput& image, const Options& options,
                            const KnownDecisions& decisions, const ImageImportance<T>& importance,
                            const ImageValues<T>& values, const ImageValues<T>& grad, void* grad_x,
                            double* grad_learnable);

}  // namespace setok
