// Gradients of the tokens from those of distances: of single pairs, and of all tokens to the seeds.

#pragma once

#include <vector>

#include "edges.h"
#include "features.h"

namespace setok {

// Seeds of an image without the absent ones, as indices of usable tokens.
template <class T>
struct Seeds {
  std::vector<index_t> token, row;  // tokens, and their rows of the masks
  index_t ld;                       // row stride of `distance`
  T* distance = nullptr;            // (count, ld), replaced by twice its gradient
  const T* x = nullptr;             // (count, dim)

  index_t count() const { return static_cast<index_t>(token.size()); }
};

// Scatters the gradients of the usable tokens into grad_x (image.tokens, dim), in the dtype of the
// image.
template <class T>
void token_gradients(const ImageInput& image, const Features<T>& tokens, const Seeds<T>& seeds,
                     const Edges<T>& edges, void* grad_x);

}  // namespace setok
