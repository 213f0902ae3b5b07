// Weighted pairs of tokens (gradients of distances), as an adjacency list of both ends.

#pragma once

#include <algorithm>

#include "common.h"

namespace setok {

// Partners of token i are those from start[i] to start[i + 1].
template <class T>
struct Edges {
  const index_t* start;  // (n + 1,)
  const index_t* partner;
  const T* weight;
};

// for_each(f) must call f(i, j, weight) for every pair, always in the same order.
template <class T, class F>
Edges<T> collect_edges(index_t n, const F& for_each, Scratch& scratch) {
  // During insertion next[i + 1] is the end of list i; finally it is the start of the next list.
  auto* next = scratch.get<index_t>(Scratch::edges, n + 2);
  std::fill_n(next, n + 2, index_t{0});
  for_each([&](index_t i, index_t j, T) {
    ++next[i + 2];
    ++next[j + 2];
  });
  for (index_t i = 1; i < n + 2; ++i) next[i] += next[i - 1];
  auto* partner = scratch.get<index_t>(Scratch::partners, next[n + 1]);
  T* weight = scratch.get<T>(Scratch::weights, next[n + 1]);
  const auto append = [&](index_t i, index_t j, T w) {
    const index_t at = next[i + 1]++;
    partner[at] = j;
    weight[at] = w;
  };
  for_each([&](index_t i, index_t j, T w) {
    append(i, j, w);
    append(j, i, w);
  });
  return {next, partner, weight};
}

}  // namespace setok
