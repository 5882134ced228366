// GroupNorm of one picture's channels, and SiLU after it where that is asked for: read twice, written once.
//
// A group's channels lie one after the other, and so do their positions: a group is one stretch of memory. Its statistics
// are taken part by part, each around its own mean, and put together by those that need them: always in the same order, so
// that the bits are always the same.
#include "device.cuh"

namespace {

constexpr int THREADS = 256;

// Parts of a group: a block each.
constexpr int PARTS = 64;

// Chunks of a channel that a thread of the second kernel writes.
constexpr int CHUNKS_PER_THREAD = 4;

// Chunks of one part, of which the last parts may have fewer or none.
__device__ __forceinline__ int64_t part_begin(int64_t chunks, int part) { return chunks * part / PARTS; }

} // namespace

// moments[group][part] = (mean, sum of squared differences from it). Grid: (64, groups).
extern "C" __global__ void __launch_bounds__(THREADS)
    group_moments(const uint16_t *x, float2 *moments, int64_t group_chunks) {
  SHARED_BYTES(shared);
  float *sums = reinterpret_cast<float *>(shared);
  const int part = blockIdx.x;
  const int64_t begin = part_begin(group_chunks, part);
  const int64_t end = part_begin(group_chunks, part + 1);
  x += blockIdx.y * group_chunks * CHUNK;
  float values[CHUNK];
  float sum = 0.0f;
  for (int64_t chunk = begin + threadIdx.x; chunk < end; chunk += THREADS) {
    unpack(values, chunk_at(x, chunk));
#pragma unroll
    for (int i = 0; i < CHUNK; ++i) {
      sum += values[i];
    }
  }
  const float count = static_cast<float>((end - begin) * CHUNK);
  const float mean = block_sum<THREADS>(sum, sums) / fmaxf(count, 1.0f);
  sum = 0.0f;
  for (int64_t chunk = begin + threadIdx.x; chunk < end; chunk += THREADS) {
    unpack(values, chunk_at(x, chunk));
#pragma unroll
    for (int i = 0; i < CHUNK; ++i) {
      sum += (values[i] - mean) * (values[i] - mean);
    }
  }
  const float squares = block_sum<THREADS>(sum, sums);
  if (threadIdx.x == 0) {
    moments[blockIdx.y * PARTS + part] = make_float2(mean, squares);
  }
}

// out = (x - mean) / sqrt(variance + epsilon) weight + bias, and SiLU of that if `is_activated`, with the group's moments and
// the channel's weight and bias. Grid: (ceil(channel_chunks / 1024), channels).
extern "C" __global__ void __launch_bounds__(THREADS)
    group_norm(const uint16_t *x, const float2 *moments, const uint16_t *weight, const uint16_t *bias, uint16_t *out,
               int64_t channel_chunks, int group_channels, float epsilon, int is_activated) {
  SHARED_BYTES(shared);
  float *sums = reinterpret_cast<float *>(shared);
  const int channel = blockIdx.y;
  const int64_t group_chunks = channel_chunks * group_channels;
  const float total = static_cast<float>(group_chunks * CHUNK);
  float2 own = make_float2(0.0f, 0.0f);
  float count = 0.0f;
  if (threadIdx.x < PARTS) {
    own = moments[channel / group_channels * PARTS + threadIdx.x];
    count = static_cast<float>((part_begin(group_chunks, threadIdx.x + 1) - part_begin(group_chunks, threadIdx.x)) * CHUNK);
  }
  const float mean = block_sum<THREADS>(own.x * count, sums) / total;
  const float squares = block_sum<THREADS>(own.y + count * (own.x - mean) * (own.x - mean), sums);
  const float inverse = rsqrtf(squares / total + epsilon);
  const float scale = inverse * low(weight[channel]);
  const float shift = low(bias[channel]) - mean * scale;

  x += channel * channel_chunks * CHUNK;
  out += channel * channel_chunks * CHUNK;
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * THREADS * CHUNKS_PER_THREAD + threadIdx.x;
#pragma unroll
  for (int i = 0; i < CHUNKS_PER_THREAD; ++i) {
    const int64_t chunk = begin + i * THREADS;
    if (chunk < channel_chunks) {
      float values[CHUNK];
      unpack(values, chunk_at(x, chunk));
#pragma unroll
      for (int k = 0; k < CHUNK; ++k) {
        const float normed = values[k] * scale + shift;
        values[k] = is_activated != 0 ? normed / (1.0f + power_of_two(-1.4426950408889634f * normed)) : normed;
      }
      put_chunk(out, chunk, packed(values));
    }
  }
}
