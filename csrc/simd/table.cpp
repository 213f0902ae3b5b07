// Kernels of one instruction set. build.py compiles this file once for each set, with its name
// SETOK_ISA and its flags.
//
// The linker must not merge a function of this object with another object's, or a processor without
// the set might run it. So every definition is local to the file, and shared functions are always
// inlined (types.h). Inline functions of the standard library are neither, and must not be used.

#include "kernels.h"

#ifndef SETOK_ISA
#define SETOK_ISA baseline
#endif

// Bytes of a vector, and rows of a block of a product (gram.h).
#if defined(__AVX512F__)
#define SETOK_BYTES 64
#define SETOK_ROWS 8
#elif defined(__AVX2__)
#define SETOK_BYTES 32
#define SETOK_ROWS 4
#else
#define SETOK_BYTES 16
#define SETOK_ROWS 4
#endif

#include "bf16.h"
#include "centres.h"
#include "convert.h"
#include "delta.h"
#include "density.h"
#include "edges.h"
#include "features.h"
#include "gram.h"
#include "merge.h"
#include "merge_backward.h"
#include "scope.h"
#include "scope_backward.h"
#include "select.h"
#include "stream.h"
#include "threshold_greedy.h"

namespace setok::SETOK_ISA {
namespace {

template <class T>
constexpr Kernels<T> table() {
  Kernels<T> table{};
#define SETOK_ENTER(name) table.name = name<T>;
  SETOK_ENTER(pack_panel)
  SETOK_ENTER(multiply_panels)
  SETOK_ENTER(transpose_tile)
  SETOK_ENTER(finish_tile)
  SETOK_ENTER(small_distances)
  SETOK_ENTER(squared_distance)
  SETOK_ENTER(row_statistics)
  SETOK_ENTER(bound_of_nearest)
  SETOK_ENTER(select_within)
  SETOK_ENTER(rank_candidates)
  SETOK_ENTER(nearest_higher)
  SETOK_ENTER(largest_of)
  SETOK_ENTER(take_centre)
  SETOK_ENTER(take_row)
  SETOK_ENTER(take_farthest)
  SETOK_ENTER(scope_step)
  SETOK_ENTER(update_labels)
  SETOK_ENTER(largest_priority)
  SETOK_ENTER(scope_step_back)
  SETOK_ENTER(is_finite)
  SETOK_ENTER(accumulate)
  SETOK_ENTER(add_scaled)
  SETOK_ENTER(sum_differences)
  SETOK_ENTER(product)
  SETOK_ENTER(product_of_three)
  SETOK_ENTER(normalise)
  SETOK_ENTER(find_near)
#undef SETOK_ENTER
  // A missing entry would be null, as those of bfloat16 are without its instructions.
  static_assert(sizeof(table) == 32 * sizeof(void (*)()));
#ifdef __AVX512BF16__
  if constexpr (sizeof(T) == 4) {
    table.pack_bf16 = pack_bf16;
    table.multiply_bf16 = multiply_bf16;
  }
#endif
  table.count_bits = count_bits;
  table.widen = widen;
  table.narrow = narrow;
  return table;
}

}  // namespace

constexpr Kernels<float> kFloat = table<float>();
constexpr Kernels<double> kDouble = table<double>();

}  // namespace setok::SETOK_ISA
