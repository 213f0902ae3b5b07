// Products over tokens or clusters, with operands packed into panels of columns.

#pragma once

#include <algorithm>

#include "common.h"
#include "simd/kernels.h"

namespace setok {

// Packs columns [left, left + kPanel) of x (count, dim); zeros after the last column, and for rows
// that are not `usable` unless that is null.
template <class T>
void copy_columns(const T* x, const bool* usable, index_t count, index_t dim, index_t left, T* to) {
  const index_t width = std::min(kPanel, dim - left);
  for (index_t i = 0; i < count; ++i, to += kPanel) {
    const bool take = usable == nullptr || usable[i];
    if (width < kPanel || !take) std::fill_n(to, kPanel, T{0});
    if (take) std::copy_n(x + i * dim + left, width, to);
  }
}

// Copies rows of a tile to columns [left, left + kPanel) of `to` (count, dim).
template <class T>
void store_columns(const T* tile, index_t count, index_t left, T* to, index_t dim) {
  const index_t width = std::min(kPanel, dim - left);
  for (index_t r = 0; r < count; ++r) std::copy_n(tile + r * kPanel, width, to + r * dim + left);
}

// out (rows, dim) = sum_i w_ci x_i over the usable tokens, or all if `usable` is null. The
// coefficients w are in panels of rows: coefs[(p * tokens + i) * kPanel + row].
template <class T>
void multiply_coefficients(const T* coefs, const T* x, const bool* usable, index_t tokens,
                           index_t dim, index_t rows, T* out) {
  parallel_tasks(panels_of(dim), [&](index_t q) {
    alignas(64) T tile[kPanel * kPanel];
    T* columns = Scratch::of_this_thread().get<T>(Scratch::tile, kPanel * tokens);
    copy_columns(x, usable, tokens, dim, q * kPanel, columns);
    for (index_t top = 0; top < rows; top += kPanel) {
      const index_t count = std::min(kPanel, rows - top);
      kernels<T>().multiply_panels(coefs + top * tokens, columns, tokens, tile, count);
      store_columns(tile, count, q * kPanel, out + top * dim, dim);
    }
  });
}

// out (tokens, dim) = sum_c M_ci t_c for masks (rows, tokens), in the panels of the tokens.
template <class T>
void unmerge_masks(const T* clusters, const T* masks, index_t mask_stride, index_t tokens,
                   index_t dim, index_t rows, T* out) {
  Scratch& scratch = Scratch::of_this_thread();
  const index_t panels = panels_of(dim);
  T* columns = scratch.get<T>(Scratch::packed, panels * kPanel * rows);
  const bool* all = nullptr;
  parallel_tasks(panels, [&](index_t q) {
    copy_columns(clusters, all, rows, dim, q * kPanel, columns + q * kPanel * rows);
  });
  parallel_tasks(panels_of(tokens), [&](index_t p) {
    alignas(64) T tile[kPanel * kPanel];
    T* coefs = Scratch::of_this_thread().get<T>(Scratch::tile, kPanel * rows);
    const index_t top = p * kPanel, count = std::min(kPanel, tokens - top);
    // The masks already have the layout of a panel: kPanel tokens of every row.
    for (index_t row = 0; row < rows; ++row) {
      T* to = coefs + row * kPanel;
      std::copy_n(masks + row * mask_stride + top, count, to);
      std::fill(to + count, to + kPanel, T{0});
    }
    for (index_t q = 0; q < panels; ++q) {
      kernels<T>().multiply_panels(coefs, columns + q * kPanel * rows, rows, tile, count);
      store_columns(tile, count, q * kPanel, out + top * dim, dim);
    }
  });
}

// out (rows, tokens), rows `ld` apart: inner products of the rows of a (rows, dim) with the tokens
// of x (tokens, dim); 0 for tokens that are not usable, unless `usable` is null.
template <class T>
void row_products(const T* a, const T* x, const bool* usable, index_t rows, index_t tokens,
                  index_t dim, T* out, index_t ld) {
  T* packed = Scratch::of_this_thread().get<T>(Scratch::packed, panels_of(rows) * kPanel * dim);
  for (index_t top = 0; top < rows; top += kPanel)
    kernels<T>().pack_panel(a + top * dim, dim, std::min(kPanel, rows - top), dim,
                            packed + top * dim);
  parallel_tasks(panels_of(tokens), [&](index_t p) {
    alignas(64) T tile[kPanel * kPanel];
    T* columns = Scratch::of_this_thread().get<T>(Scratch::tile, kPanel * dim);
    const index_t left = p * kPanel, width = std::min(kPanel, tokens - left);
    kernels<T>().pack_panel(x + left * dim, dim, width, dim, columns);
    for (index_t i = 0; usable != nullptr && i < width; ++i)
      for (index_t j = 0; !usable[left + i] && j < dim; ++j) columns[j * kPanel + i] = 0;
    for (index_t top = 0; top < rows; top += kPanel) {
      const index_t count = std::min(kPanel, rows - top);
      kernels<T>().multiply_panels(packed + top * dim, columns, dim, tile, count);
      for (index_t r = 0; r < count; ++r)
        std::copy_n(tile + r * kPanel, width, out + (top + r) * ld + left);
    }
  });
}

}  // namespace setok
