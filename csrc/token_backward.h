// Gradients by the tokens from those by distances: of single pairs, and of all tokens to the seeds.

#pragma once

#include <vector>

#include "edges.h"
#include "features.h"

namespace setok {

// Seeds of an image in the numbering of the tokens that take part, without the absent ones.
template <class T>
struct Seeds {
  std::vector<index_t> token, row;  // `row` of the masks
  index_t ld;                       // of what follows
  T* distance = nullptr;            // (count, ld), replaced by twice its gradient
  const T* x = nullptr;             // (count, dim)

  index_t count() const { return static_cast<index_t>(token.size()); }
};

// Writes the gradients of the tokens that take part to their places in grad_x (image.tokens, dim),
// in the dtype of the image.
template <class T>
void token_gradients(const ImageInput& image, const Features<T>& tokens, const Seeds<T>& seeds,
                     const Edges<T>& edges, void* grad_x);

}  // namespace setok
