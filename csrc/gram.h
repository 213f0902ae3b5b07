// Inner products of tokens, a panel of them against another, and distances by the differences.

#pragma once

#include "common.h"

namespace setok {

// Tokens of a panel, which lie side by side: packed[k * kPanel + i] is feature k of token i.
constexpr index_t kPanel = 32;
inline index_t panels_of(index_t n) { return (n + kPanel - 1) / kPanel; }

// packed (dim, kPanel), 64-byte aligned, from x (count, dim) with rows `ld` apart; tokens behind
// the last are 0.
template <class T>
void pack_panel(const T* x, index_t ld, index_t count, index_t dim, T* packed);

// tile[r * kPanel + c] = inner product of token r of `a` and token c of `b`; all 64-byte aligned.
// Every product is summed in the same order over the features, so a pair of tokens gives the same
// bits wherever the two stand, and so does a pair of others equal to them. Only `rows` of the tile
// are wanted, the others undefined.
template <class T>
void multiply_panels(const T* a, const T* b, index_t dim, T* tile, index_t rows = kPanel);

// to[c * ld + r] = tile[r * kPanel + c].
template <class T>
void transpose_tile(const T* tile, T* to, index_t ld);

// (n, ld) squared distances by the differences: more exact, and less work for few numbers.
void small_distances(const float* x, index_t n, index_t dim, float* out, index_t ld);
void small_distances(const double* x, index_t n, index_t dim, double* out, index_t ld);

// ||a - b||^2, by the differences.
double squared_distance(const double* a, const double* b, index_t dim);
float squared_distance(const float* a, const float* b, index_t dim);

}  // namespace setok
