// Softmax of each row of a matrix of scores, for attention whose heads are too wide for the fused kernels.
#include "device.cuh"

namespace {

constexpr int THREADS = 256;
constexpr int WARPS = THREADS / LANES;

// The largest value of a block. All threads call it; `shared` has one value for each warp.
__device__ __forceinline__ float block_max(float value, float *shared) {
#pragma unroll
  for (int mask = LANES / 2; mask > 0; mask /= 2) {
    value = fmaxf(value, from_lane_xor(value, mask));
  }
  if (threadIdx.x % LANES == 0) {
    shared[threadIdx.x / LANES] = value;
  }
  __syncthreads();
  value = shared[0];
#pragma unroll
  for (int warp = 1; warp < WARPS; ++warp) {
    value = fmaxf(value, shared[warp]);
  }
  return value;
}

} // namespace

// `out = 2^(factor x) / the row's sum of these`, for `x` and `out [rows, 8 × chunks]`, `factor` positive. The second read of
// the row hits a cache. Grid: (rows); a float of shared memory for each warp.
extern "C" __global__ void __launch_bounds__(THREADS) softmax(const uint16_t *x, uint16_t *out, int chunks, float factor) {
  SHARED_BYTES(shared);
  float *places = reinterpret_cast<float *>(shared);
  x += static_cast<int64_t>(blockIdx.x) * chunks * CHUNK;
  out += static_cast<int64_t>(blockIdx.x) * chunks * CHUNK;
  float values[CHUNK];
  float largest = -INFINITY;
  float total = 0.0f;
  for (int chunk = threadIdx.x; chunk < chunks; chunk += THREADS) {
    unpack(values, chunk_at(x, chunk));
    float best = largest;
#pragma unroll
    for (int i = 0; i < CHUNK; ++i) {
      best = fmaxf(best, values[i]);
    }
    total *= power_of_two((largest - best) * factor);
    largest = best;
#pragma unroll
    for (int i = 0; i < CHUNK; ++i) {
      total += power_of_two((values[i] - best) * factor);
    }
  }
  const float best = block_max(largest, places);
  // A thread without a chunk has minus infinity and a sum of zero.
  const float inverse = 1.0f / block_sum<THREADS>(total * power_of_two((largest - best) * factor), places);
  for (int chunk = threadIdx.x; chunk < chunks; chunk += THREADS) {
    unpack(values, chunk_at(x, chunk));
#pragma unroll
    for (int i = 0; i < CHUNK; ++i) {
      values[i] = power_of_two((values[i] - best) * factor) * inverse;
    }
    put_chunk(out, chunk, packed(values));
  }
}
