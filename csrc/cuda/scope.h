// Arguments of the kernels of scope.cu; triton/setok_triton/cuda_image.py has the same fields.
#pragma once

#include <cstdint>

namespace setok {

// Tokens of all images are concatenated. T tokens, B images, K neighbours, C clusters at most.
struct Arguments {
  const int64_t* offsets;   // (B + 1,) first token of each image
  const int8_t* ok;         // (T,) 0 for excluded tokens
  const float* sigma;       // (B,) scale of the squared distances
  const int32_t* num_ok;    // (B,) tokens that are not excluded
  const float* distance;    // (B, longest, pitch) unscaled squared distances, infinite if excluded
  const uint8_t* valid;     // (T,) or null
  const float* importance;  // (T,) weights of the scores, or null
  const int64_t* budget;    // (B,) maximum number of seeds, or null for max_clusters
  const float* learnable;   // (4,) bandwidth, beta, temperature, offset
  const int64_t* knn;       // (T, K) neighbours, ascending by distance, -1 for none
  const float* density;     // (T,)
  int64_t* parent;          // (T,) -1 for the top token; input of a replay
  int64_t* seeds;           // (B, C) rows stride_seeds apart; input of a replay
  int64_t* counts;          // (B,) input of a replay
  float* masks;             // (B, C + 1, N), or packed (C + 1, T)
  float* delta;             // (T,)
  float* score;             // (T,)
  int64_t* labels;          // (T,)
  int64_t stride_image;     // strides of the masks over images, rows, and the image's first token
  int64_t stride_row;
  int64_t stride_start;
  int64_t stride_seeds;
  int32_t k;
  int32_t max_clusters;
  int32_t longest;  // maximum number of tokens of an image
  int32_t pitch;    // columns of a distance row
  float stop_residual;
  float min_mass;
  int32_t kernel;  // Kernel
  int32_t sigmoid;
  int32_t distinct;
  int32_t exact;  // only the budget stops the loop, and labels never name the residual
  int32_t normalise;
  int32_t replay;  // parents, seeds and counts are inputs
};

enum Kernel : int32_t { kGaussian, kLaplacian, kEpanechnikov };

}  // namespace setok
