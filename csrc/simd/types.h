// Sizes, options and operands shared by the kernels of all instruction sets and their callers.
//
// table.cpp is compiled with instructions that not every processor has. The linker keeps one of
// several equal inline functions for all callers, so every function here is always inlined.

#pragma once

#include <cstdint>
#include <cstring>
#include <limits>

#define SETOK_INLINE inline __attribute__((always_inline))

namespace setok {

using index_t = int64_t;

// Distance rows and vectors over tokens are padded to whole groups of lanes, so that no loop has a
// scalar tail: equal numbers give equal bits at every position.
constexpr index_t kLanes = 16;
SETOK_INLINE index_t padded(index_t n) { return (n + kLanes - 1) / kLanes * kLanes; }

// Number of tokens of a panel; packed[k * kPanel + i] is feature k of token i.
constexpr index_t kPanel = 32;
SETOK_INLINE index_t panels_of(index_t n) { return (n + kPanel - 1) / kPanel; }

// One bit for each token of a panel.
using Word = uint32_t;
static_assert(sizeof(Word) * 8 == kPanel);

enum class Kernel : int64_t { gaussian, laplacian, epanechnikov };
enum class Alpha : int64_t { sigmoid, kernel };

template <class To, class From>
SETOK_INLINE To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From), "a cast of bits keeps the size");
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

// The bits of a float order like its magnitude; non-finite floats come last.
template <class T>
struct Bits;
template <>
struct Bits<float> {
  using type = uint32_t;
  static constexpr type kMagnitude = 0x7fffffffu, kInfinity = 0x7f800000u;
};
template <>
struct Bits<double> {
  using type = uint64_t;
  static constexpr type kMagnitude = 0x7fffffffffffffffull, kInfinity = 0x7ff0000000000000ull;
};

template <class T>
struct RowStatistics {
  typename Bits<T>::type largest;  // bits of the maximum magnitude
  double squares;                  // sum of squared differences from the origin
};

// Distance in columns after the last token: larger than any neighbour's, and finite, so that
// products with 0 are 0.
template <class T>
constexpr T kFar = std::numeric_limits<T>::max();

// Maximum number of candidates that are ranked by counting, not sorted.
constexpr index_t kRanked = 32;

// List of the k smallest distances so far, ties lowest index; `distance` and `index` hold k each.
template <class T>
struct Nearest {
  T* distance;
  index_t* index;
  index_t k, found;

  // Candidates may come in any order: equal distances are ordered by index.
  SETOK_INLINE void insert(T d, index_t i) {
    if (found == k && !before(d, i, distance[k - 1], index[k - 1])) return;
    index_t at = found < k ? found++ : k - 1;
    for (; at > 0 && before(d, i, distance[at - 1], index[at - 1]); --at) {
      distance[at] = distance[at - 1];
      index[at] = index[at - 1];
    }
    distance[at] = d;
    index[at] = i;
  }

  static SETOK_INLINE bool before(T d, index_t i, T other, index_t j) {
    return d < other || (d == other && i < j);
  }
};

// Distances of one panel's tokens (rows from `top`, `ld` apart) to a strip's (columns from `left`).
template <class T>
struct Tile {
  T* distance;
  index_t ld, top, left, rows, columns;
  bool diagonal;  // the strip contains the rows' own tokens
};

// Running lists of nearest tokens; n has room for whole strips in `bound`.
template <class T>
struct Lists {
  index_t k;
  T *distance, *bound;     // (n, k); (n,) last distance of a full list, else kFar
  index_t *index, *found;  // (n, k); (n,)

  SETOK_INLINE void insert(index_t token, T d, index_t other) const {
    Nearest<T> list{distance + token * k, index + token * k, k, found[token]};
    list.insert(d, other);
    found[token] = list.found;
    if (list.found == k) bound[token] = list.distance[k - 1];
  }
};

// Vectors over the tokens of one image, all padded to whole groups of lanes with zeros.
template <class T>
struct ScopeState {
  index_t width;
  T sigma;          // scale of the distances
  const T* number;  // 0, 1, 2, ...: indices of the same width as the rest
  const T* score;
  T* threshold;  // (offset + beta * score) * steep
  T* scope;      // z
  T* next;       // z * (1 - alpha) of the current step
  T* mask;       // z * alpha of the current step
  T* eligible;   // 1 if the token may be a seed, else 0
  T* best;       // maximum mask so far, initially -1
  T* label;      // row of `best`
  T far = 0;     // upper bound of distances
  T log2e = 0, bandwidth = 0, beta = 0;
  T steep = 0;  // log2(e) / temperature: the sigmoid is 1 / (1 + 2**(threshold - steep * phi))
};

template <class T>
struct Priority {
  index_t token;  // first eligible token of the largest scope * score; -1 without any
  T scope;        // sum of the scope
};

// Parameters of alpha.
template <class T>
struct Curve {
  Kernel kernel;
  Alpha form;
  T sigma, far, bandwidth, beta, steep;
  T slope;  // -log2(e) / bandwidth
  T reach;  // turns gradients of phi, times -bandwidth, into twice those of the squared distance
};

// Number of tokens of a task of the scope's gradients; sums are added in the order of the blocks.
constexpr index_t kScopeBlock = 256;

// Vectors over the tokens of such a block, zeros after the last.
template <class T>
struct ScopeBlock {
  alignas(64) T score[kScopeBlock], threshold[kScopeBlock];
  alignas(64) T mask[kScopeBlock], grad[kScopeBlock];
  alignas(64) T later[kScopeBlock];       // gradient of the remaining scope
  alignas(64) T level_grad[kScopeBlock];  // sum over the seeds of the gradient of the level
  index_t width;
  double sums[4][kLanes];  // sums of the level's gradient: alone, and times score, level and reach
};

}  // namespace setok
