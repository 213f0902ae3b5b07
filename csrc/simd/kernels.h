// Innermost loops over tokens and features: one table of functions for each instruction set, chosen
// at the first call (isa.h).

#pragma once

#include "types.h"

namespace setok {

template <class T>
struct Kernels {
  // packed (dim, kPanel), 64-byte aligned, from x (count, dim) with rows `ld` apart; tokens after
  // the last are 0.
  void (*pack_panel)(const T* x, index_t ld, index_t count, index_t dim, T* packed);

  // tile[r * kPanel + c] = inner product of token r of `a` and token c of `b`; all 64-byte aligned.
  // Every product is summed in the same order over the features, so equal pairs of tokens give
  // equal bits at every position. Only `rows` of the tile are defined.
  void (*multiply_panels)(const T* a, const T* b, index_t dim, T* tile, index_t rows);

  // The same for features that are bfloat16 numbers, with half as much packed memory and as many
  // instructions; null without instructions for it. Products are exact, and sums in float32 are
  // rounded to nearest as those above. Subnormal features, products and sums count as 0.
  void (*pack_bf16)(const T* x, index_t ld, index_t count, index_t dim, T* packed);
  void (*multiply_bf16)(const T* a, const T* b, index_t dim, T* tile, index_t rows);

  // to[c * ld + r] = tile[r * kPanel + c].
  void (*transpose_tile)(const T* tile, T* to, index_t ld);

  // tile = to = max(0, row_norm + column_norm - 2 tile), where rows of `to` are `ld` apart.
  void (*finish_tile)(T* tile, const T* row_norm, const T* column_norm, T* to, index_t ld);

  // (n, ld) squared distances from differences: more exact, and less work for few features.
  void (*small_distances)(const T* x, index_t n, index_t dim, T* out, index_t ld);

  // ||a - b||^2 from differences.
  T (*squared_distance)(const T* a, const T* b, index_t dim);

  // Statistics of one row of features; also adds its differences from the origin to `total` (dim,).
  RowStatistics<T> (*row_statistics)(const T* x, const T* origin, double* total, index_t dim);

  // Upper bound of the k-th smallest of a row.
  T (*bound_of_nearest)(const T* row, index_t width, index_t k);

  // Writes the j in [0, width) with row[j] <= bound into `found` in ascending order; returns their
  // count. `found` has room for width + kLanes; width is a multiple of kLanes.
  index_t (*select_within)(const T* row, index_t width, T bound, int32_t* found);

  // Selects the k nearest of at most kRanked candidates in ascending order of index, nearest first;
  // returns their count.
  index_t (*rank_candidates)(const T* row, const int32_t* candidate, index_t count, index_t k,
                             index_t* knn);

  // Nearest token of higher order than i, ties lowest index; -1 for the top token. `row` is the row
  // of distances of i; `density` and `number` (0, 1, 2, ...) are padded, density with -infinity.
  index_t (*nearest_higher)(const T* row, const T* density, const T* number, index_t n, index_t i);

  // Maximum of the n distances of a row, 0 without any.
  T (*largest_of)(const T* row, index_t n);

  // Updates the nearest centres by centre `number` with distances `row` to `count` tokens: where it
  // is nearer than all before, writes `distance` and `nearest`. Ties keep the first centre.
  void (*take_centre)(const T* row, index_t count, index_t number, T* distance, T* nearest);

  // Merges a row of a tile into the running lists of its token and of the columns' tokens.
  void (*take_row)(const Lists<T>& lists, const Tile<T>& tile, index_t r);

  // Updates the maximum distances so far by a row of a tile; (n,) for whole strips.
  void (*take_farthest)(T* farthest, const Tile<T>& tile, index_t r);

  // Mask and next scope for a seed whose row of distances is `row`; returns the sum of the mask.
  T (*scope_step)(const ScopeState<T>& state, Kernel kernel, Alpha alpha, const T* row);

  // Sets the label to `row` where the mask of the step is the maximum so far.
  void (*update_labels)(const ScopeState<T>& state, T row);

  Priority<T> (*largest_priority)(const ScopeState<T>& state);

  // Runs one seed backwards; its distance row becomes the row of their gradients.
  void (*scope_step_back)(const Curve<T>& curve, ScopeBlock<T>& block, T* row);

  bool (*is_finite)(const T* x, index_t dim);

  // sum += weight * x.
  void (*accumulate)(T* sum, const T* x, T weight, index_t dim);

  // sum += a * x - y.
  void (*add_scaled)(T a, const T* x, const T* y, index_t dim, T* sum);

  // sum (dim,) = sum of weight * (x_i - x_j) over the `count` partners j of token i.
  void (*sum_differences)(const T* x, index_t dim, index_t i, const index_t* partner,
                          const T* weight, index_t count, T* sum);

  // Sums of products of two or three factors.
  double (*product)(const T* a, const T* b, index_t count);
  double (*product_of_three)(const T* a, const T* b, const T* c, index_t count);

  // Divides a token by its norm, after scaling by a power of two that keeps squares and norm in
  // range. A zero vector does not change.
  void (*normalise)(T* x, index_t dim);

  // Turns a tile of products into distances. Distances below the bound set bits in `row` (one per
  // column) and in `column` (one per row).
  void (*find_near)(T* tile, T bound, Word* row, Word* column);

  // Independent of T.

  index_t (*count_bits)(const Word* words, index_t count);

  // Conversions between 16-bit floating-point numbers and float, round to nearest even.
  void (*widen)(const uint16_t* from, bool half, float* to, index_t count);
  void (*narrow)(const float* from, bool half, uint16_t* to, index_t count);
};

// Kernels of the instruction set in use.
template <class T>
const Kernels<T>& kernels();

// Tables of a set, defined by its object of table.cpp.
#define SETOK_DECLARE_TABLES(isa)       \
  namespace isa {                       \
  extern const Kernels<float> kFloat;   \
  extern const Kernels<double> kDouble; \
  }
SETOK_DECLARE_TABLES(avx512bf16)
SETOK_DECLARE_TABLES(avx512)
SETOK_DECLARE_TABLES(avx2)
SETOK_DECLARE_TABLES(baseline)
#undef SETOK_DECLARE_TABLES

}  // namespace setok
