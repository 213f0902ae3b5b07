// Reductions over a block with one barrier: a warp writes one partial, and every warp reduces all.
#pragma once

#include <cstdint>

namespace setok {

constexpr unsigned kAll = 0xffffffff;
constexpr int kLanes = 32;
// Larger than any index of a token.
constexpr int kFar = 0x7fffffff;

// Bits of a non-negative float, which order like the float, and the token that has it. Negative
// bits: no token.
struct Best {
  int bits;
  int token;

  __device__ bool exists() const { return bits >= 0; }
  __device__ int token_or_first() const { return bits >= 0 ? token : 0; }
};

struct alignas(16) Partial {
  Best best;
  float left;
  float mass;
};

struct Reduced {
  Best first;
  Best second;  // the largest of the other warps
  float left;
  float mass;
};

// The largest of the warp, ties lowest token.
__device__ inline Best largest(Best own) {
  const int bits = __reduce_max_sync(kAll, own.bits);
  return {bits, __reduce_min_sync(kAll, own.bits == bits ? own.token : kFar)};
}

// Sum over aligned groups of 2 * FARTHEST lanes; all lanes add in the same order.
template <int FARTHEST>
__device__ inline float sum(float value) {
#pragma unroll
  for (int apart = FARTHEST; apart > 0; apart /= 2) value += __shfl_xor_sync(kAll, value, apart);
  return value;
}

// Partials of the warps. Two sets take turns, so one barrier per reduction suffices: a warp can
// write a set again only after a barrier that all warps reach after reading it.
template <int WARPS>
struct Board {
  Partial partials[2][WARPS];
};

// Reduce over a block of at most WARPS warps, a power of two; all threads get the result. `turn`
// alternates between calls.
template <int WARPS>
__device__ inline Reduced reduce(Board<WARPS>& board, int turn, Partial own, bool weighed) {
  const int lane = threadIdx.x % kLanes, warps = blockDim.x / kLanes;
  own.best = largest(own.best);
  own.left = sum<kLanes / 2>(own.left);
  if (weighed) own.mass = sum<kLanes / 2>(own.mass);
  if (lane == 0) board.partials[turn][threadIdx.x / kLanes] = own;
  __syncthreads();
  // Each group of WARPS lanes holds all partials.
  const int other = lane % WARPS;
  Partial found{{-1, kFar}, 0.0f, 0.0f};
  if (other < warps) found = board.partials[turn][other];
  Reduced all;
  all.first = largest(found.best);
  if (found.best.token == all.first.token) found.best.bits = -1;
  all.second = largest(found.best);
  all.left = sum<WARPS / 2>(found.left);
  all.mass = weighed ? sum<WARPS / 2>(found.mass) : 0.0f;
  return all;
}

}  // namespace setok
