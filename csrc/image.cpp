#include "image.h"

#include <algorithm>
#include <vector>

#include "scope.h"
#include "simd/kernels.h"

namespace setok {
namespace {

template <class T>
struct Job {
  const Options& options;
  const KnownDecisions& known;
  const Guide<T>& guide;
  const ImageOutput<T>& out;
  const Peaks<T>& peaks;
};

// Scales the seed distances; that of the top token is the maximum of its row.
template <class T>
void find_delta(const Job<T>& job) {
  const Peaks<T>& peaks = job.peaks;
  const index_t n = peaks.tokens.n;
  for (index_t i = 0; i < n; ++i) {
    if (peaks.parent[i] < 0) peaks.delta[i] = kernels<T>().largest_of(peaks.rows.row(i), n);
    // An infinite delta at density 0 would make the score NaN.
    peaks.delta[i] = std::min(peaks.tokens.sigma * peaks.delta[i], std::numeric_limits<T>::max());
  }
}

template <class T>
void find_score(const Job<T>& job) {
  const index_t n = job.peaks.tokens.n;
  T* score = job.peaks.score;
  for (index_t i = 0; i < n; ++i) score[i] = job.peaks.density[i] * job.peaks.delta[i];
  weigh_scores(job.peaks, job.guide.importance);
  if (!job.options.score_norm_max) return;
  index_t top = job.known.knn != nullptr ? job.peaks.compact(job.known.seed(0)) : -1;
  if (top < 0) top = std::max_element(score, score + n) - score;
  const T largest = score[top];
  // A subnormal maximum counts as 0, as in the reference.
  if (largest < std::numeric_limits<T>::min()) return;
  for (index_t i = 0; i < n; ++i) score[i] = score[i] / largest;
}

template <class T>
void write_mask(const Job<T>& job, index_t row, const T* mask) {
  T* to = job.out.masks + row * job.out.mask_stride;
  if (job.peaks.tokens.position == nullptr) {
    std::copy_n(mask, job.peaks.tokens.n, to);
    return;
  }
  std::fill_n(to, job.peaks.image.tokens, T{0});
  for (index_t i = 0; i < job.peaks.tokens.n; ++i) to[job.peaks.tokens.position[i]] = mask[i];
}

// Number of vectors of a scope.
constexpr index_t kScopeVectors = 7;

template <class T>
ScopeState<T> initial_scope(const Job<T>& job) {
  const Peaks<T>& peaks = job.peaks;
  const index_t n = peaks.tokens.n, width = peaks.width;
  const auto vector = [&](index_t number) { return peaks.more + number * width; };
  ScopeState<T> state{width,     peaks.tokens.sigma, peaks.number, peaks.score,
                      vector(0), vector(1),          vector(2),    vector(3),
                      vector(4), vector(5),          vector(6)};
  std::fill_n(state.scope, n, T{1});
  std::fill_n(state.eligible, n, T{1});
  std::fill_n(state.best, width, T{-1});
  set_options(state, job.options);
  return state;
}

// Distance rows of seeds. Without a matrix they are computed for several candidates at a time.
template <class T>
class SeedRows {
 public:
  explicit SeedRows(const DistanceRows<T>& rows) : rows_(rows) {}

  // Row of a seed that is among the candidates, or else of the first of new ones.
  template <class F>
  const T* row(index_t seed, const F& candidates) {
    if (rows_.dense()) return rows_.row(seed);
    auto at = std::find(chosen_.begin(), chosen_.end(), seed);
    if (at == chosen_.end()) {
      chosen_ = candidates();
      block_ = rows_.block(chosen_.data(), static_cast<index_t>(chosen_.size()));
      at = std::find(chosen_.begin(), chosen_.end(), seed);
    }
    return block_ + (at - chosen_.begin()) * rows_.ld;
  }

 private:
  const DistanceRows<T>& rows_;
  std::vector<index_t> chosen_;
  const T* block_ = nullptr;
};

// Eligible tokens of the largest scope * score, at most a panel of them; the first is the next
// seed.
template <class T>
std::vector<index_t> next_candidates(const ScopeState<T>& state, index_t n) {
  std::vector<index_t> found;
  for (index_t i = 0; i < n; ++i)
    if (state.eligible[i] > 0) found.push_back(i);
  const index_t count = std::min(kPanel, static_cast<index_t>(found.size()));
  std::partial_sort(found.begin(), found.begin() + count, found.end(), [&](index_t a, index_t b) {
    const T one = state.scope[a] * state.score[a], other = state.scope[b] * state.score[b];
    return one > other || (one == other && a < b);
  });
  found.resize(count);
  return found;
}

// Chooses the seeds and writes their masks; returns their count.
template <class T>
index_t choose_seeds(const Job<T>& job, ScopeState<T>& state) {
  const Options& options = job.options;
  const double min_mass = options.exact ? 0 : options.min_mass;
  index_t count = 0;
  SeedRows<T> rows(job.peaks.rows);
  const auto candidates = [&] { return next_candidates(state, job.peaks.tokens.n); };
  Priority<T> top = kernels<T>().largest_priority(state);
  while (count < job.guide.budget && top.token >= 0) {
    const index_t seed = top.token;
    const T mass =
        kernels<T>().scope_step(state, options.kernel, options.alpha, rows.row(seed, candidates));
    if (min_mass > 0 && !(mass >= static_cast<T>(min_mass))) break;
    write_mask(job, count, state.mask);
    commit(state, count);
    job.out.seeds[count++] = job.peaks.tokens.position_of(seed);
    if (options.distinct_seeds) state.eligible[seed] = 0;
    top = kernels<T>().largest_priority(state);
    if (options.exact) continue;
    const T mean = top.scope / static_cast<T>(job.peaks.tokens.n);
    if (!(mean > static_cast<T>(options.stop_residual))) break;
  }
  return count;
}

// Given seeds from a row on, at most a panel of them.
template <class T>
std::vector<index_t> following_seeds(const Job<T>& job, index_t row) {
  std::vector<index_t> found;
  for (; row < job.options.max_clusters && static_cast<index_t>(found.size()) < kPanel; ++row)
    if (const index_t seed = job.peaks.compact(job.known.seed(row)); seed >= 0)
      found.push_back(seed);
  return found;
}

// Writes the masks of given seeds; an absent seed has a zero mask.
template <class T>
void replay_seeds(const Job<T>& job, ScopeState<T>& state) {
  SeedRows<T> rows(job.peaks.rows);
  for (index_t row = 0; row < job.options.max_clusters; ++row) {
    const index_t seed = job.peaks.compact(job.known.seed(row));
    if (seed < 0) {
      std::fill_n(state.mask, state.width, T{0});
      write_mask(job, row, state.mask);
      continue;
    }
    const auto candidates = [&] { return following_seeds(job, row); };
    kernels<T>().scope_step(state, job.options.kernel, job.options.alpha,
                            rows.row(seed, candidates));
    write_mask(job, row, state.mask);
    std::swap(state.scope, state.next);
  }
}

// Writes the row of the maximum mask, among the first `rows`, of every valid token.
template <class T>
void labels_from_masks(const Job<T>& job, index_t rows) {
  for (index_t i = 0; i < job.peaks.image.tokens; ++i) {
    if (job.peaks.image.valid != nullptr && !job.peaks.image.valid[i]) continue;
    const T* mask = job.out.masks + i;
    index_t label = 0;
    for (index_t row = 1; row < rows; ++row)
      if (mask[row * job.out.mask_stride] > mask[label * job.out.mask_stride]) label = row;
    job.out.labels[i] = label;
  }
}

// True if a token of the image is valid but non-finite.
template <class T>
bool is_absent(const Job<T>& job, index_t i) {
  return (job.peaks.image.valid == nullptr || job.peaks.image.valid[i]) &&
         job.peaks.compact_of[i] < 0;
}

// Labels of exact=true: a seed has its own row, and only non-finite tokens are in the residual.
template <class T>
void label_exactly(const Job<T>& job, index_t count, const index_t* seeds) {
  for (index_t i = 0; i < job.peaks.image.tokens; ++i)
    if (job.peaks.tokens.position != nullptr && is_absent(job, i)) job.out.labels[i] = count;
  // Backwards: a token that is a seed twice has its first row.
  for (index_t row = count - 1; row >= 0; --row) {
    const index_t seed = seeds[row];
    if (job.peaks.compact(seed) >= 0) job.out.labels[seed] = row;
  }
}

template <class T>
void find_scope(const Job<T>& job) {
  ScopeState<T> state = initial_scope(job);
  const bool replay = job.known.knn != nullptr;
  const index_t rows = job.options.max_clusters + 1;
  index_t count;
  if (replay) {
    count = *job.known.count;
    replay_seeds(job, state);
  } else {
    count = choose_seeds(job, state);
    for (index_t row = count + 1; row < rows; ++row)
      std::fill_n(job.out.masks + row * job.out.mask_stride, job.peaks.image.tokens, T{0});
    *job.out.count = count;
  }
  // The remaining scope is the residual; a non-finite token is all residual.
  write_mask(job, count, state.scope);
  if (replay) {
    if (count < rows - 1)
      std::fill_n(job.out.masks + (rows - 1) * job.out.mask_stride, job.peaks.image.tokens, T{0});
  }
  T* residual = job.out.masks + count * job.out.mask_stride;
  if (job.peaks.tokens.position != nullptr) {
    for (index_t i = 0; i < job.peaks.image.tokens; ++i)
      if (is_absent(job, i)) residual[i] = 1;
  }
  // Without a seed all tokens are residual.
  const bool exact = job.options.exact && count > 0;
  if (replay) {
    labels_from_masks(job, exact ? count : rows);
    if (exact) label_exactly(job, count, job.known.seeds);
    return;
  }
  for (index_t i = 0; i < job.peaks.image.tokens; ++i)
    if (job.peaks.image.valid == nullptr || job.peaks.image.valid[i]) job.out.labels[i] = count;
  for (index_t i = 0; i < job.peaks.tokens.n; ++i)
    if (exact || !(state.scope[i] > state.best[i]))
      job.out.labels[job.peaks.tokens.position_of(i)] = static_cast<index_t>(state.label[i]);
  if (exact) label_exactly(job, count, job.out.seeds);
}

}  // namespace

template <class T>
void cluster_image(const ImageInput& image, const Options& options, const KnownDecisions& known,
                   const Guide<T>& guide, index_t dense_limit, const ImageOutput<T>& out) {
  const Peaks<T> peaks(image, options, dense_limit, kScopeVectors);
  const Job<T> job{options, known, guide, out, peaks};
  std::fill_n(out.labels, image.tokens, index_t{-1});
  if (known.knn == nullptr) std::fill_n(out.seeds, options.max_clusters, index_t{-1});
  if (peaks.tokens.n > 0) {
    find_density<T>(peaks, options, known.knn, out.peaks.knn, nullptr);
    find_parents(peaks, options.k, out.peaks.knn, known.parent);
    find_delta(job);
    find_score(job);
  }
  find_scope(job);
  write_statistics(peaks, options.k, out.peaks);
}

template void cluster_image(const ImageInput&, const Options&, const KnownDecisions&,
                            const Guide<float>&, index_t, const ImageOutput<float>&);
template void cluster_image(const ImageInput&, const Options&, const KnownDecisions&,
                            const Guide<double>&, index_t, const ImageOutput<double>&);

}  // namespace setok
