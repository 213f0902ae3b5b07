// Operation `setok::threshold_greedy`: greedy clustering by a threshold of the cosine similarity.
// Distances are negative similarities here.

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "checks.h"
#include "operators.h"
#include "simd/kernels.h"
#include "tensors.h"

namespace setok {
namespace {

// Max tokens of an image whose distances are kept; longer images keep one bit per pair.
constexpr index_t kDense = 3072;
// Number of panels of a strip (two strips fit into an L2 cache), and of centres packed at a time.
constexpr index_t kStrip = 4, kGroup = 8;

// Usable tokens, normalised and packed into panels, and their neighbour bits.
template <class T>
struct Job {
  index_t n, dim, panels;
  const index_t* position;  // (n,) position of each token in the image
  T* packed;
  Word* near;   // (n, panels)
  T* distance;  // (panels * kPanel, panels * kPanel), null if not kept

  T* panel(index_t p) const { return packed + p * kPanel * dim; }
  index_t ld() const { return panels * kPanel; }
  index_t tokens_of(index_t p) const { return std::min(kPanel, n - p * kPanel); }
};

// Writes the positions of the valid and finite tokens; returns their count.
template <class T>
index_t find_usable(const ImageInput& image, index_t* position) {
  bool* usable = Scratch::of_this_thread().get<bool>(Scratch::finite, image.tokens);
  parallel_blocks(image.tokens, 64, [&](index_t begin, index_t end) {
    T* row = Scratch::of_this_thread().get<T>(Scratch::tile, image.dim);
    for (index_t i = begin; i < end; ++i) {
      usable[i] = image.valid == nullptr || image.valid[i];
      if (!usable[i]) continue;
      load_row(image, i, row);
      usable[i] = kernels<T>().is_finite(row, image.dim);
    }
  });
  index_t n = 0;
  for (index_t i = 0; i < image.tokens; ++i)
    if (usable[i]) position[n++] = i;
  return n;
}

template <class T>
void load_panels(const ImageInput& image, const Job<T>& job) {
  parallel_tasks(job.panels, [&](index_t p) {
    T* rows = Scratch::of_this_thread().get<T>(Scratch::tile, kPanel * job.dim);
    const index_t count = job.tokens_of(p);
    for (index_t r = 0; r < count; ++r) {
      load_row(image, job.position[p * kPanel + r], rows + r * job.dim);
      kernels<T>().normalise(rows + r * job.dim, job.dim);
    }
    kernels<T>().pack_panel(rows, job.dim, count, job.dim, job.panel(p));
  });
}

template <class T>
void compare_panels(const Job<T>& job, T bound, index_t p, index_t q) {
  alignas(64) T tile[kPanel * kPanel];
  Word row[kPanel], column[kPanel];
  kernels<T>().multiply_panels(job.panel(p), job.panel(q), job.dim, tile, kPanel);
  kernels<T>().find_near(tile, bound, row, column);
  const index_t rows = job.tokens_of(p), columns = job.tokens_of(q);
  Word* of_rows = job.near + p * kPanel * job.panels + q;
  Word* of_columns = job.near + q * kPanel * job.panels + p;
  // Padding is zero: it neighbours all tokens or none, so it does not change their order.
  for (index_t r = 0; r < rows; ++r)
    of_rows[r * job.panels] = row[r] | (p == q ? Word{1} << r : Word{0});
  // Above the diagonal the rows always fill a panel.
  for (index_t c = 0; p != q && c < columns; ++c) of_columns[c * job.panels] = column[c];
  if (job.distance == nullptr) return;
  T* to = job.distance + p * kPanel * job.ld() + q * kPanel;
  for (index_t r = 0; r < kPanel; ++r) std::copy_n(tile + r * kPanel, kPanel, to + r * job.ld());
  if (p != q)
    kernels<T>().transpose_tile(tile, job.distance + q * kPanel * job.ld() + p * kPanel, job.ld());
}

// Loops over the upper triangle strip by strip, so that panels are read again from the cache.
template <class T>
void compare_all(const Job<T>& job, T bound) {
  const index_t strips = (job.panels + kStrip - 1) / kStrip;
  parallel_tasks(strips * (strips + 1) / 2, [&](index_t pair) {
    index_t above = 0, right = pair;
    while (right >= strips - above) right -= strips - above++;
    const index_t bottom = std::min(job.panels, (above + 1) * kStrip),
                  left = (above + right) * kStrip;
    for (index_t p = above * kStrip; p < bottom; ++p)
      for (index_t q = std::max(p, left); q < std::min(job.panels, left + kStrip); ++q)
        compare_panels(job, bound, p, q);
  });
}

// Lets the unclaimed token with the most neighbours claim them, until none is left.
template <class T>
std::vector<index_t> claim(const Job<T>& job) {
  std::vector<index_t> neighbours(job.n), order(job.n), centres;
  parallel_blocks(job.n, 256, [&](index_t begin, index_t end) {
    for (index_t i = begin; i < end; ++i)
      neighbours[i] = kernels<T>().count_bits(job.near + i * job.panels, job.panels);
  });
  // Neighbours are counted once, so the order of the tokens is fixed.
  std::iota(order.begin(), order.end(), index_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](index_t a, index_t b) { return neighbours[a] > neighbours[b]; });
  std::vector<Word> left(job.panels, ~Word{0});
  for (const index_t i : order) {
    if ((left[i / kPanel] >> i % kPanel & 1) == 0) continue;
    centres.push_back(i);
    const Word* near = job.near + i * job.panels;
    for (index_t w = 0; w < job.panels; ++w) left[w] &= ~near[w];
  }
  std::sort(centres.begin(), centres.end());
  return centres;
}

// Panels of centres [first, last), negated: their products are distances.
template <class T>
T* pack_centres(const Job<T>& job, const std::vector<index_t>& centres, index_t first,
                index_t last) {
  T* packed = Scratch::of_this_thread().get<T>(Scratch::columns, kGroup * kPanel * job.dim);
  parallel_tasks(panels_of(last - first), [&](index_t q) {
    T* to = packed + q * kPanel * job.dim;
    for (index_t r = 0; r < std::min(kPanel, last - first - q * kPanel); ++r) {
      const index_t centre = centres[first + q * kPanel + r];
      const T* from = job.panel(centre / kPanel) + centre % kPanel;
      for (index_t j = 0; j < job.dim; ++j) to[j * kPanel + r] = -from[j * kPanel];
    }
  });
  return packed;
}

// nearest (panels * kPanel,): row of each token's centre, in the type of the distances.
template <class T>
void find_nearest(const Job<T>& job, const std::vector<index_t>& centres, T* distance, T* nearest) {
  const auto count = static_cast<index_t>(centres.size());
  const bool dense = job.distance != nullptr;
  const index_t group = dense ? count : kGroup * kPanel;
  std::fill_n(distance, job.ld(), std::numeric_limits<T>::infinity());
  for (index_t first = 0; first < count; first += group) {
    const index_t last = std::min(first + group, count);
    const T* packed = dense ? nullptr : pack_centres(job, centres, first, last);
    parallel_tasks(job.panels, [&](index_t p) {
      alignas(64) T tile[kPanel * kPanel];
      const index_t at = p * kPanel;
      for (index_t c = first; c < last; ++c) {
        const index_t r = (c - first) % kPanel;
        if (!dense && r == 0)
          kernels<T>().multiply_panels(packed + (c - first) * job.dim, job.panel(p), job.dim, tile,
                                       std::min(kPanel, last - c));
        const T* row = dense ? job.distance + centres[c] * job.ld() + at : tile + r * kPanel;
        kernels<T>().take_centre(row, kPanel, c, distance + at, nearest + at);
      }
    });
  }
}

// Writes labels (tokens,) and centres (columns,), -1 after the last; returns their count.
template <class T>
index_t cluster_image(const ImageInput& image, double threshold, index_t columns, index_t* labels,
                      index_t* centres) {
  std::fill_n(labels, image.tokens, index_t{-1});
  std::fill_n(centres, columns, index_t{-1});
  Scratch& scratch = Scratch::of_this_thread();
  auto* position = scratch.get<index_t>(Scratch::position, image.tokens);
  const index_t n = find_usable<T>(image, position), panels = panels_of(n), ld = panels * kPanel;
  const Job<T> job{n,
                   image.dim,
                   panels,
                   position,
                   scratch.get<T>(Scratch::packed, ld * image.dim),
                   scratch.get<Word>(Scratch::lists, n * panels),
                   n <= kDense ? scratch.get<T>(Scratch::distances, ld * ld) : nullptr};
  load_panels(image, job);
  // Products of equal tokens may round above 1, but must not exceed a threshold of 1.
  compare_all(job,
              threshold < 1 ? static_cast<T>(-threshold) : -std::numeric_limits<T>::infinity());
  const std::vector<index_t> chosen = claim(job);
  const auto count = static_cast<index_t>(chosen.size());
  T *distance = scratch.get<T>(Scratch::vectors, 2 * ld), *nearest = distance + ld;
  if (count < n) find_nearest(job, chosen, distance, nearest);
  for (index_t i = 0; count < n && i < n; ++i)
    labels[position[i]] = static_cast<index_t>(nearest[i]);
  // A centre keeps its own row even if another one is equally near.
  for (index_t c = 0; c < count; ++c) labels[centres[c] = position[chosen[c]]] = c;
  return count;
}

}  // namespace

// x (B, N, D), or (T, D) with cu_seqlens; all contiguous. Returns labels, centres and counts.
std::array<Tensor, 3> threshold_greedy(const Tensor& x, const Tensor* valid,
                                       const Tensor* cu_seqlens, int64_t max_seqlen,
                                       double threshold) {
  const Layout layout = check_tokens(x, valid, cu_seqlens, max_seqlen);
  check_range("max_seqlen", max_seqlen, 0, kMostCount);
  if (std::isnan(threshold)) refuse("threshold", "a number", threshold);
  const index_t images = layout.images();
  Tensor labels = empty_index(leading_of(x));
  Tensor centres = empty_index({images, max_seqlen}), counts = empty_index({images});
  for_type_of(x, [&](auto zero) {
    parallel_images(images, [&](index_t b) {
      data<index_t>(counts)[b] = cluster_image<decltype(zero)>(
          image_of(x, valid, layout, b), threshold, max_seqlen,
          data<index_t>(labels) + layout.start[b], data<index_t>(centres) + b * max_seqlen);
      Scratch::of_this_thread().trim();
    });
  });
  return {std::move(labels), std::move(centres), std::move(counts)};
}

}  // namespace setok
