// Parents, delta, score, masks of Algorithm 1 and labels, with one block per image.
//
// The semantics are those of triton/setok_triton/image.py. A thread keeps the state of its tokens
// in registers; a step of the loop has one barrier (reduce.h). The second largest product is mostly
// the seed of the step after next, so its distance row is loaded one step early. Compiled with
// -fmad=false: a replay repeats the roundings of the loop.

#include "tokens.h"

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

// State of the scope loop.
template <int TOKENS, int WARPS>
struct Scope {
  const Arguments& a;
  const Tokens<TOKENS, WARPS>& tokens;
  const Alpha alpha;
  float* row;  // of the masks, from the thread's first token
  float scope[TOKENS];
  float shift[TOKENS];     // offset + beta * score
  float priority[TOKENS];  // score, negative if not eligible
  float best[TOKENS];      // largest mask so far, and its row
  int label[TOKENS];

  __device__ Scope(const Tokens<TOKENS, WARPS>& of, const float (&score)[TOKENS])
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
    if (alpha.sigmoid) {
#pragma unroll
      for (int t = 0; t < TOKENS; ++t) {
        const float exponent = fminf((out[t] - shift[t]) * alpha.steep, kDeepest);
        out[t] = reciprocal_approx(1.0f + exp2_approx(exponent));
      }
    } else {
#pragma unroll
      for (int t = 0; t < TOKENS; ++t) out[t] = fminf(fmaxf(out[t] - shift[t], 0.01f), 0.99f);
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
  __device__ int find_seeds(Board<WARPS>& board) {
    const int64_t image = tokens.image;
    int steps = a.max_clusters;
    if (a.budget != nullptr) {
      steps = static_cast<int>(min(max(a.budget[image], int64_t{0}), int64_t{a.max_clusters}));
    }
    const bool weighed = a.min_mass > 0.0f && !a.exact;
    // No division in the loop.
    const float enough = a.stop_residual * static_cast<float>(max(a.num_ok[image], 1));
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
      going = all.first.exists() && count < steps && (a.exact || all.left > enough);
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

template <int TOKENS, int WARPS>
__device__ void cluster_image(const Arguments& a) {
  __shared__ Shared<TOKENS, WARPS> shared;
  const Tokens<TOKENS, WARPS> tokens(a);
  float delta[TOKENS], score[TOKENS];
  tokens.find_parents(shared, delta);
  tokens.set_scores(shared, delta, score);
  Scope<TOKENS, WARPS> scope(tokens, score);
  scope.finish(a.replay ? scope.replay_seeds() : scope.find_seeds(shared.board));
}

}  // namespace

// Names: number of tokens of a thread. Images of at most 256, 1024 and 2048 tokens. One block on a
// multiprocessor is enough: with more in mind the assembler spills.
#define SETOK_SCOPE_KERNEL(TOKENS, WARPS)                              \
  extern "C" __global__ void __launch_bounds__(WARPS* kLanes, 1)       \
      scope_fwd_kernel_##TOKENS(const __grid_constant__ Arguments a) { \
    cluster_image<TOKENS, WARPS>(a);                                   \
  }

SETOK_SCOPE_KERNEL(1, 8)
SETOK_SCOPE_KERNEL(2, 16)
SETOK_SCOPE_KERNEL(4, 16)

}  // namespace setok
