// Tokens of an image: parents from the neighbour lists, delta and seed scores.
#pragma once

#include <cfloat>

#include "reduce.h"
#include "scope.h"

namespace setok {

// Keep a pointer in a register; otherwise the compiler derives each address from the arguments.
__device__ inline void keep(const float*& p) { asm("" : "+l"(p)); }

// Have all loads above on their way before the first is awaited. To save registers, the assembler
// would put each load just before its use; it does not move one over this.
__device__ inline void wait_once() { __syncwarp(); }

// Higher density, or equal density and lower index.
__device__ inline bool precedes(float rho_other, int other, float rho_own, int own) {
  // No short circuit: branches would delay the loads that follow.
  return (rho_other > rho_own) | ((rho_other == rho_own) & (other < own));
}

// Shared memory of a block.
template <int TOKENS, int WARPS>
struct Shared {
  static constexpr int kSize = TOKENS * WARPS * kLanes;
  alignas(16) float density[kSize];
  float delta[kSize];  // of local peaks, unscaled
  int peaks[kSize];    // local peaks, ascending within a warp's tokens
  int warp_peaks[WARPS];
  Board<WARPS> board;
};

// Tokens of a thread: first, first + 32, ...; a warp holds consecutive tokens.
template <int TOKENS, int WARPS>
struct Tokens {
  using Memory = Shared<TOKENS, WARPS>;

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
    keep(rows);
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

  // Set the first of the neighbours that precedes each token, else -1: the lists are sorted and
  // contain the nearest tokens.
  __device__ void list_parents(const float* density, int (&parent)[TOKENS]) const {
    constexpr int kTurn = 8;
#pragma unroll
    for (int t = 0; t < TOKENS; ++t) parent[t] = -1;
    if (n == 0) return;
    for (int k = 0; k < a.k; k += kTurn) {
      int others[TOKENS][kTurn];
#pragma unroll
      for (int t = 0; t < TOKENS; ++t) {
        const int64_t* list = a.knn + (start + min(index(t), n - 1)) * a.k;
#pragma unroll
        for (int i = 0; i < kTurn; ++i) {
          // The last neighbour again: see `visit_row`.
          others[t][i] = static_cast<int>(list[min(k + i, a.k - 1)]);
        }
      }
      wait_once();
#pragma unroll
      for (int t = 0; t < TOKENS; ++t) {
        const float own = density[index(t)];
        int found = -1;
#pragma unroll
        for (int i = kTurn - 1; i >= 0; --i) {
          const int other = others[t][i];
          const bool first = (other >= 0) & precedes(density[max(other, 0)], other, own, index(t));
          found = first ? other : found;
        }
        parent[t] = parent[t] < 0 && ok[t] ? found : parent[t];
      }
    }
  }

  // Call `visit(d, j)` for the lane's part of a row of distances, for some j again.
  template <class Visit>
  __device__ void visit_row(int token, Visit visit) const {
    // Quads of a lane that are loaded before the first is awaited.
    constexpr int kTurn = TOKENS == 1 ? 2 : TOKENS == 2 ? 8 : 4;
    constexpr int kStride = 4 * kLanes * kTurn;
    static_assert(Memory::kSize % kStride == 0);
    const float* p = row(token);
    keep(p);
    const int lane = threadIdx.x % kLanes, whole = n / 4 * 4;
    const int rest = min(whole + lane, n - 1);
    const float last = __ldcg(p + rest);
#pragma unroll 1
    for (int begin = 0; begin < Memory::kSize; begin += kStride) {
      if (begin >= whole) break;
      float4 d[kTurn];
#pragma unroll
      for (int i = 0; i < kTurn; ++i) {
        // The last quad again, because a condition would make the loads wait for one another.
        const int at = min(begin + 4 * (lane + i * kLanes), whole - 4);
        d[i] = __ldcg(reinterpret_cast<const float4*>(p + at));
      }
      wait_once();
#pragma unroll
      for (int i = 0; i < kTurn; ++i) {
        const int at = min(begin + 4 * (lane + i * kLanes), whole - 4);
        visit(d[i].x, at);
        visit(d[i].y, at + 1);
        visit(d[i].z, at + 2);
        visit(d[i].w, at + 3);
      }
    }
    visit(last, rest);
  }

  // Find the parent of a local peak in its row, and its unscaled delta; a warp for each.
  __device__ void scan_peak(Memory& shared, int peak) const {
    int parent = kFar, delta = 0;
    // Distances are non-negative, so their bits order like the floats.
    if (!a.replay) {
      const float own = shared.density[peak];
      float nearest = INFINITY;
      visit_row(peak, [&](float d, int j) {
        const bool nearer = (d < nearest) & precedes(shared.density[j], j, own, peak);
        nearest = nearer ? d : nearest;
        parent = nearer ? j : parent;
      });
      delta = __reduce_min_sync(kAll, __float_as_int(nearest));
      parent = __reduce_min_sync(kAll, __float_as_int(nearest) == delta ? parent : kFar);
    }
    const bool found = parent != kFar;
    if (!found) {
      // The top token.
      float far = 0.0f;
      visit_row(peak, [&](float d, int) { far = fmaxf(far, d < INFINITY ? d : 0.0f); });
      delta = __reduce_max_sync(kAll, __float_as_int(far));
    }
    if (threadIdx.x % kLanes == 0) {
      shared.delta[peak] = __int_as_float(delta);
      if (!a.replay) a.parent[start + peak] = found ? parent : -1;
    }
  }

  // Write parents, and set the unscaled distances to them; the top token takes the maximum.
  __device__ void find_parents(Memory& shared, float (&delta)[TOKENS]) const {
    for (int i = threadIdx.x; i < Memory::kSize; i += blockDim.x) {
      shared.density[i] = i < n ? __ldg(a.density + start + i) : 0.0f;
    }
    __syncthreads();
    const int lane = threadIdx.x % kLanes, warp = threadIdx.x / kLanes;
    int parent[TOKENS];
    if (!a.replay) list_parents(shared.density, parent);
    bool is_peak[TOKENS];
    unsigned ballots[TOKENS];
    int own_peaks = 0;
#pragma unroll
    for (int t = 0; t < TOKENS; ++t) {
      if (a.replay) parent[t] = ok[t] ? static_cast<int>(a.parent[start + index(t)]) : -1;
      delta[t] = parent[t] >= 0 ? __ldg(row(index(t)) + parent[t]) : 0.0f;
      is_peak[t] = ok[t] && parent[t] < 0;
      if (!a.replay && inside(t) && !is_peak[t]) a.parent[start + index(t)] = parent[t];
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
  __device__ void set_scores(Memory& shared, const float (&delta)[TOKENS],
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
      score[t] = shared.density[index(t)] * scaled;
      // An infinite score would make its normalised form NaN.
      if (a.importance != nullptr) score[t] = fminf(score[t] * weight(t), FLT_MAX);
      if (top < 0 || index(t) == top) largest = max(largest, __float_as_int(score[t]));
    }
    if (a.normalise) {
      const Reduced all = reduce(shared.board, 1, {{largest, first}, 0.0f, 0.0f}, false);
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

}  // namespace setok
