// Parents, delta, score, masks of Algorithm 1 and labels, with one block per image.
//
// The semantics are those of triton/setok_triton/image.py. A thread keeps the state of its tokens
// in registers; a step of the loop has one barrier (reduce.h). The second largest product is mostly
// the seed of the step after next, so its distance row is loaded one step early. Compiled with
// -fmad=false: a replay repeats the roundings of the loop.

#include <cfloat>

#include "reduce.h"
#include "scope.h"

namespace setok {
namespace {

constexpr float kLog2E = 1.4426950408889634f;
// Upper bound of scaled distances, far beyond the support of any kernel.
constexpr float kFarthest = 1.8446742974197924e19f;
// Upper bound of the sigmoid's exponent: its value stays a normal number.
constexpr float kDeepest = 79.85f * kLog2E;

__device__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ float reciprocal_approx(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ float sqrt_approx(float x) {
  float y;
  asm("sqrt.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Higher density, or equal density and lower index.
__device__ bool precedes(float rho_other, int other, float rho_own, int own) {
  return rho_other > rho_own || (rho_other == rho_own && other < own);
}

// Hyper-parameters of alpha; divisions before the loop would delay every step inside.
struct Alpha {
  float slope;  // factor of a distance: -1 / bandwidth, for exponentials times log2(e)
  float steep;  // -log2(e) / temperature
  float beta;
  float offset;  // 0 without a sigmoid
  int kernel;
  bool sigmoid;

  __device__ explicit Alpha(const Arguments& a) {
    const float per_bandwidth = fminf(__fdiv_rn(1.0f, a.learnable[0]), FLT_MAX);
    const float per_temperature = fminf(__fdiv_rn(1.0f, a.learnable[2]), FLT_MAX);
    kernel = a.kernel;
    sigmoid = a.sigmoid;
    slope = -fminf(kernel == kEpanechnikov ? per_bandwidth : per_bandwidth * kLog2E, FLT_MAX);
    steep = -fminf(per_temperature * kLog2E, FLT_MAX);
    beta = a.learnable[1];
    offset = sigmoid ? a.learnable[3] : 0.0f;
  }
};

// Shared memory of a block of at most SIZE tokens.
template <int SIZE>
struct Shared {
  alignas(16) float density[SIZE];
  float delta[SIZE];  // of local peaks, unscaled
  int peaks[SIZE];    // local peaks, ascending within a warp's tokens
  int warp_peaks[kMaxWarps];
  Board board;
};

// Tokens of a thread: first, first + 32, ...; a warp holds consecutive tokens.
template <int TOKENS>
struct Tokens {
  const Arguments& a;
  int64_t image;
  int64_t start;
  int n;
  int first;
  const float* rows;  // distance rows of the image
  float sigma;
  bool ok[TOKENS];

  __device__ explicit Tokens(const Arguments& arguments) : a(arguments) {
    image = blockIdx.x;
    start = a.offsets[image];
    // A caller's `max_seqlen` may be too small.
    n = min(static_cast<int>(a.offsets[image + 1] - start), a.longest);
    first = threadIdx.x / kLanes * kLanes * TOKENS + threadIdx.x % kLanes;
    rows = a.distance + image * a.longest * a.pitch;
    sigma = a.sigma[image];
#pragma unroll
    for (int t = 0; t < TOKENS; ++t) ok[t] = inside(t) && a.ok[start + index(t)] != 0;
  }

  __device__ int index(int t) const { return first + t * kLanes; }
  __device__ bool inside(int t) const { return index(t) < n; }
  __device__ const float* row(int token) const {
    return rows + static_cast<int64_t>(token) * a.pitch;
  }

  // Load the unscaled distances to a token.
  __device__ void load(float (&d)[TOKENS], int token) const {
    const float* p = row(token) + first;
#pragma unroll
    for (int t = 0; t < TOKENS; ++t) {
      if (inside(t)) d[t] = __ldg(p + t * kLanes);
    }
  }

  // The first of the neighbours that precedes each token, else -1: the lists are sorted and contain
  // the nearest tokens.
  __device__ int listed_parent(int t, const float* density) const {
    constexpr int kTurn = 8;
    const int64_t* list = a.knn + (start + index(t)) * a.k;
    const float own = density[index(t)];
    int parent = -1;
    for (int k = 0; k < a.k && parent < 0; k += kTurn) {
      int others[kTurn];
#pragma unroll
      for (int i = 0; i < kTurn; ++i) {
        others[i] = k + i < a.k ? static_cast<int>(__ldg(list + k + i)) : -1;
      }
#pragma unroll
      for (int i = 0; i < kTurn; ++i) {
        const int other = others[i];
        if (parent < 0 && other >= 0 && precedes(density[other], other, own, index(t))) {
          parent = other;
        }
      }
    }
    return parent;
  }

  // Find the parent of a local peak in its row, and its unscaled delta; a warp for each.
  template <int SIZE>
  __device__ void scan_peak(Shared<SIZE>& shared, int peak) const {
    const float* p = row(peak);
    const float own = shared.density[peak];
    const int lane = threadIdx.x % kLanes;
    float far = 0.0f, nearest = INFINITY;
    int parent = kFar;
    const auto visit = [&](float d, float rho, int j) {
      if (d < INFINITY) far = fmaxf(far, d);
      if (d < nearest && precedes(rho, j, own, peak)) {
        nearest = d;
        parent = j;
      }
    };
    const int quads = n / 4;
    for (int q = lane; q < quads; q += kLanes) {
      const float4 d = __ldg(reinterpret_cast<const float4*>(p) + q);
      const float4 rho = reinterpret_cast<const float4*>(shared.density)[q];
      visit(d.x, rho.x, 4 * q);
      visit(d.y, rho.y, 4 * q + 1);
      visit(d.z, rho.z, 4 * q + 2);
      visit(d.w, rho.w, 4 * q + 3);
    }
    if (const int j = 4 * quads + lane; j < n) visit(__ldg(p + j), shared.density[j], j);
    // Distances are non-negative, so their bits order like the floats.
    const int least = __reduce_min_sync(kAll, __float_as_int(nearest));
    parent = __reduce_min_sync(kAll, __float_as_int(nearest) == least ? parent : kFar);
    const bool found = parent != kFar;
    const int largest = __reduce_max_sync(kAll, __float_as_int(far));
    if (lane == 0) {
      shared.delta[peak] = __int_as_float(found && !a.replay ? least : largest);
      if (!a.replay) a.parent[start + peak] = found ? parent : -1;
    }
  }

  // Write parents, and set the unscaled distances to them; the top token takes the maximum.
  template <int SIZE>
  __device__ void find_parents(Shared<SIZE>& shared, float (&delta)[TOKENS]) const {
#pragma unroll
    for (int t = 0; t < TOKENS; ++t) {
      if (inside(t)) shared.density[index(t)] = __ldg(a.density + start + index(t));
    }
    __syncthreads();
    const int lane = threadIdx.x % kLanes, warp = threadIdx.x / kLanes;
    bool is_peak[TOKENS];
    unsigned ballots[TOKENS];
    int own_peaks = 0;
#pragma unroll
    for (int t = 0; t < TOKENS; ++t) {
      int parent = -1;
      delta[t] = 0.0f;
      if (ok[t]) {
        parent = a.replay ? static_cast<int>(a.parent[start + index(t)])
                          : listed_parent(t, shared.density);
      }
      if (parent >= 0) delta[t] = __ldg(row(index(t)) + parent);
      is_peak[t] = ok[t] && parent < 0;
      if (!a.replay && inside(t) && !is_peak[t]) a.parent[start + index(t)] = parent;
      ballots[t] = __ballot_sync(kAll, is_peak[t]);
      own_peaks += __popc(ballots[t]);
    }
    if (lane == 0) shared.warp_peaks[warp] = own_peaks;
    __syncthreads();
    int place = 0, peaks = 0;
    for (int w = 0; w < blockDim.x / kLanes; ++w) {
      if (w == warp) place = peaks;
      peaks += shared.warp_peaks[w];
    }
#pragma unroll
    for (int t = 0; t < TOKENS; ++t) {
      const unsigned before = ballots[t] & ((1u << lane) - 1);
      if (is_peak[t]) shared.peaks[place + __popc(before)] = index(t);
      place += __popc(ballots[t]);
    }
    __syncthreads();
    for (int i = warp; i < peaks; i += blockDim.x / kLanes) scan_peak(shared, shared.peaks[i]);
    __syncthreads();
#pragma unroll
    for (int t = 0; t < TOKENS; ++t) {
      if (is_peak[t]) delta[t] = shared.delta[index(t)];
    }
  }

  // Weight of a token in the score: 0 if negative or not finite. Not -0, whose bits are below those
  // of any other.
  __device__ float weight(int t) const {
    const float given = __ldg(a.importance + start + index(t));
    return given > 0.0f && given < INFINITY ? given : 0.0f;
  }

  // Write delta and scores, from unscaled distances to the parents.
  __device__ void set_scores(Board& board, const float* density, const float (&delta)[TOKENS],
                             float (&score)[TOKENS]) const {
    const int top = a.replay ? static_cast<int>(a.seeds[image * a.stride_seeds]) : -1;
    int largest = -1;
#pragma unroll
    for (int t = 0; t < TOKENS; ++t) {
      score[t] = 0.0f;
      if (!inside(t)) continue;
      // An infinite delta at density 0 would make the score NaN.
      const float scaled = ok[t] ? fminf(sigma * delta[t], FLT_MAX) : 0.0f;
      a.delta[start + index(t)] = scaled;
      score[t] = density[index(t)] * scaled;
      // An infinite score would make its normalised form NaN.
      if (a.importance != nullptr) score[t] = fminf(score[t] * weight(t), FLT_MAX);
      if (top < 0 || index(t) == top) largest = max(largest, __float_as_int(score[t]));
    }
    if (a.normalise) {
      const Reduced all = reduce(board, 1, {{largest, first}, 0.0f, 0.0f}, false);
      const float maximum = __int_as_float(all.first.bits);
      // The reciprocal of a subnormal maximum is not finite. Exact division, so that the maximum
      // becomes exactly 1. Without a token the bits are those of a NaN.
      const float divisor = maximum >= FLT_MIN ? maximum : 1.0f;
#pragma unroll
      for (int t = 0; t < TOKENS; ++t) score[t] = __fdiv_rn(score[t], divisor);
    }
#pragma unroll
    for (int t = 0; t < TOKENS; ++t) {
      if (inside(t)) a.score[start + index(t)] = score[t];
    }
  }
};

// State of the scope loop.
template <int TOKENS>
struct Scope {
  const Arguments& a;
  const Tokens<TOKENS>& tokens;
  const Alpha alpha;
  float* row;  // of the masks, from the thread's first token
  float scope[TOKENS];
  float shift[TOKENS];     // offset + beta * score
  float priority[TOKENS];  // score, negative if not eligible
  float best[TOKENS];      // largest mask so far, and its row
  int label[TOKENS];

  __device__ Scope(const Tokens<TOKENS>& of, const float (&score)[TOKENS])
      : a(of.a), tokens(of), alpha(of.a) {
    row = a.masks + tokens.image * a.stride_image + tokens.start * a.stride_start + tokens.first;
#pragma unroll
    for (int t = 0; t < TOKENS; ++t) {
      scope[t] = tokens.ok[t] ? 1.0f : 0.0f;
      shift[t] = alpha.offset + alpha.beta * score[t];
      priority[t] = tokens.ok[t] ? score[t] : -1.0f;
      best[t] = -1.0f;
      label[t] = 0;
    }
  }

  // Set alpha from unscaled distances to the seed. It is finite for every token, also where the
  // scope is 0 and the distance infinite or NaN.
  __device__ void set_alpha(const float (&d)[TOKENS], float (&out)[TOKENS]) const {
#pragma unroll
    for (int t = 0; t < TOKENS; ++t) out[t] = fminf(tokens.sigma * d[t], kFarthest);
    if (alpha.kernel == kEpanechnikov) {
#pragma unroll
      for (int t = 0; t < TOKENS; ++t) {
        out[t] = fmaxf(__fmaf_rn(out[t], alpha.slope, 1.0f), 0.0f);
      }
    } else {
      if (alpha.kernel == kLaplacian) {
#pragma unroll
        for (int t = 0; t < TOKENS; ++t) out[t] = sqrt_approx(out[t]);
      }
#pragma unroll
      for (int t = 0; t < TOKENS; ++t) out[t] = exp2_approx(out[t] * alpha.slope);
    }
#pragma unroll
    for (int t = 0; t < TOKENS; ++t) {
      const float level = out[t] - shift[t];
      if (alpha.sigmoid) {
        const float exponent = fminf(level * alpha.steep, kDeepest);
        out[t] = reciprocal_approx(1.0f + exp2_approx(exponent));
      } else {
        out[t] = fminf(fmaxf(level, 0.01f), 0.99f);
      }
    }
  }

  // Write the masks of a row, and keep the row where it is the largest of a token.
  __device__ void append(const float (&mask)[TOKENS], int step, int seed, bool compared) {
    // EXACT: a seed has its own row.
    const int own = a.exact ? seed - tokens.first : -1;
#pragma unroll
    for (int t = 0; t < TOKENS; ++t) {
      if (tokens.inside(t)) __stcs(row + t * kLanes, mask[t]);
      const float value = own == t * kLanes ? INFINITY : mask[t];
      if (compared && value > best[t]) {
        best[t] = value;
        label[t] = step;
      }
    }
    row += a.stride_row;
  }

  __device__ Partial products(const float (&left)[TOKENS]) const {
    Partial own{{-1, tokens.first}, 0.0f, 0.0f};
#pragma unroll
    for (int t = 0; t < TOKENS; ++t) {
      const int bits = __float_as_int(left[t] * priority[t]);
      if (bits > own.best.bits) own.best = {bits, tokens.index(t)};
      own.left += left[t];
    }
    return own;
  }

  // Run the loop; return the number of seeds.
  __device__ int find_seeds(Board& board) {
    const int64_t image = tokens.image;
    int steps = a.max_clusters;
    if (a.budget != nullptr) {
      steps = static_cast<int>(min(max(a.budget[image], int64_t{0}), int64_t{a.max_clusters}));
    }
    const bool weighed = a.min_mass > 0.0f && !a.exact;
    const float num_ok = static_cast<float>(max(a.num_ok[image], 1));
    int64_t* const seeds = a.seeds + image * a.stride_seeds;
    Reduced all = reduce(board, 0, products(scope), false);
    int count = 0, seed = all.first.token_or_first(), guess = seed;
    float d[TOKENS] = {}, guessed[TOKENS] = {};
    bool going = all.first.exists() && steps > 0;
    if (going) tokens.load(d, seed);
#pragma unroll
    for (int t = 0; t < TOKENS; ++t) guessed[t] = d[t];
    while (going) {
      float mask[TOKENS], left[TOKENS];
      set_alpha(d, mask);
      // The same seed is not eligible again.
      const int taken = a.distinct ? seed - tokens.first : -1;
      float mass = 0.0f;
#pragma unroll
      for (int t = 0; t < TOKENS; ++t) {
        left[t] = __fmaf_rn(-scope[t], mask[t], scope[t]);
        mask[t] *= scope[t];
        mass += mask[t];
        if (taken == t * kLanes) priority[t] = -1.0f;
      }
      Partial own = products(left);
      own.mass = mass;
      all = reduce(board, (count + 1) % 2, own, weighed);
      // A cluster below min_mass is not appended; the residual takes its row.
      if (weighed && !(all.mass >= a.min_mass)) break;
      const int next = all.first.token_or_first();
      if (next == guess) {
#pragma unroll
        for (int t = 0; t < TOKENS; ++t) d[t] = guessed[t];
      } else {
        tokens.load(d, next);
      }
      guess = all.second.token_or_first();
      tokens.load(guessed, guess);
      append(mask, count, seed, true);
      if (threadIdx.x == 0) seeds[count] = seed;
#pragma unroll
      for (int t = 0; t < TOKENS; ++t) scope[t] = left[t];
      seed = next;
      ++count;
      going = all.first.exists() && count < steps &&
              (a.exact || __fdiv_rn(all.left, num_ok) > a.stop_residual);
    }
    for (int c = count + threadIdx.x; c < a.max_clusters; c += blockDim.x) seeds[c] = -1;
    if (threadIdx.x == 0) a.counts[image] = count;
    return count;
  }

  // Write all rows of given seeds; return their number.
  __device__ int replay_seeds() {
    const int64_t* const seeds = a.seeds + tokens.image * a.stride_seeds;
    const int count = static_cast<int>(a.counts[tokens.image]);
    for (int step = 0; step < a.max_clusters; ++step) {
      const int seed = static_cast<int>(seeds[step]);
      float d[TOKENS] = {}, mask[TOKENS] = {};
      if (seed >= 0) {
        tokens.load(d, seed);
        set_alpha(d, mask);
      }
#pragma unroll
      for (int t = 0; t < TOKENS; ++t) {
        const float left = __fmaf_rn(-scope[t], mask[t], scope[t]);
        mask[t] *= scope[t];
        scope[t] = left;
      }
      // EXACT compares the rows before the residual, also those without a seed.
      append(mask, step, seed, a.exact ? step < count : seed >= 0);
    }
    return count;
  }

  // Write the residual row, the labels, and zeros into the rows after both.
  __device__ void finish(int count) {
    float* const first_row = row - (a.replay ? a.max_clusters : count) * a.stride_row;
#pragma unroll
    for (int t = 0; t < TOKENS; ++t) {
      if (!tokens.inside(t)) continue;
      const int64_t token = tokens.start + tokens.index(t);
      const bool valid = a.valid == nullptr || a.valid[token] != 0;
      // A valid token with a non-finite feature is all residual.
      const float residual = tokens.ok[t] ? scope[t] : valid ? 1.0f : 0.0f;
      __stcs(first_row + count * a.stride_row + t * kLanes, residual);
      // EXACT: without a seed, row 0 is the residual.
      const bool is_residual = a.exact ? !tokens.ok[t] : residual > best[t];
      a.labels[token] = !valid ? -1 : is_residual ? count : label[t];
    }
    // A replay has already written its rows up to the last, zeros without a seed.
    const int begin = a.replay ? max(count + 1, a.max_clusters) : count + 1;
    for (int c = begin; c <= a.max_clusters; ++c) {
#pragma unroll
      for (int t = 0; t < TOKENS; ++t) {
        if (tokens.inside(t)) __stcs(first_row + c * a.stride_row + t * kLanes, 0.0f);
      }
    }
  }
};

template <int TOKENS, int THREADS>
__device__ void cluster_image(const Arguments& a) {
  __shared__ Shared<TOKENS * THREADS> shared;
  const Tokens<TOKENS> tokens(a);
  float delta[TOKENS], score[TOKENS];
  tokens.find_parents(shared, delta);
  tokens.set_scores(shared.board, shared.density, delta, score);
  Scope<TOKENS> scope(tokens, score);
  scope.finish(a.replay ? scope.replay_seeds() : scope.find_seeds(shared.board));
}

}  // namespace

// Names: number of tokens of a thread. Images of at most 256, 768 and 2048 tokens.
#define SETOK_SCOPE_KERNEL(TOKENS, THREADS)                            \
  extern "C" __global__ void __launch_bounds__(THREADS)                \
      scope_fwd_kernel_##TOKENS(const __grid_constant__ Arguments a) { \
    cluster_image<TOKENS, THREADS>(a);                                 \
  }

SETOK_SCOPE_KERNEL(1, 256)
SETOK_SCOPE_KERNEL(3, 256)
SETOK_SCOPE_KERNEL(4, 512)

}  // namespace setok
