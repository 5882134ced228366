// Parts of the attention kernels of attention.cu: tiles in shared memory, what a lane holds of them, and the online softmax of
// a fragment of 16 queries.
#pragma once

#include "attention.cuh"

namespace {

// Keys of a round.
constexpr int KEYS = 64;
// Rows of a tensor-core instruction's left operand, and terms of its sum.
constexpr int FRAGMENT = 16;
constexpr int DEPTH = 16;

constexpr float LOG2E = 1.4426950408889634f;

// Position of a row's chunk in shared memory: neighboring rows begin in different banks.
template <int WIDTH> __device__ __forceinline__ int swizzled(int row, int chunk) {
  constexpr int CHUNKS = WIDTH / CHUNK;
  constexpr int MASK = (CHUNKS < 8 ? CHUNKS : 8) - 1;
  return row * WIDTH + (chunk ^ (row & MASK)) * CHUNK;
}

// Where a lane's row of four matrices is: of a 16×16 fragment with rows below each other, from the tile's row `first` on, or
// of one that is loaded transposed. Columns further right are at this position, exclusive or their distance.
template <int WIDTH> __device__ __forceinline__ int row_fragment(int first, int lane) {
  return first * WIDTH + swizzled<WIDTH>(lane / 8 % 2 * 8 + lane % 8, lane / 16);
}

// The same for the fragment whose rows are columns of the product.
template <int WIDTH> __device__ __forceinline__ int column_fragment(int first, int lane) {
  return first * WIDTH + swizzled<WIDTH>(lane / 16 * 8 + lane % 8, lane / 8 % 2);
}

// Starts to copy `ROWS` rows of a sequence from row `first` on; those behind its end become zero. The number of turns does not
// depend on the thread, so that the compiler unrolls them, and a row's distance takes one multiplication.
template <int WIDTH, int ROWS, int THREADS>
__device__ __forceinline__ void copy_rows(uint16_t *tile, const uint16_t *sequence, int stride, int first, int length) {
  constexpr int CHUNKS = WIDTH / CHUNK;
  constexpr int ROWS_AT_ONCE = THREADS / CHUNKS;
  static_assert(ROWS_AT_ONCE % 8 == 0, "a thread's chunks are below each other");
  const int own = threadIdx.x / CHUNKS;
  const int chunk = threadIdx.x % CHUNKS;
  uint16_t *target = tile + swizzled<WIDTH>(own, chunk);
  const char *source = reinterpret_cast<const char *>(sequence + chunk * CHUNK);
  const int row_bytes = stride * static_cast<int>(sizeof(uint16_t));
#pragma unroll
  for (int i = 0; i < ROWS; i += ROWS_AT_ONCE) {
    const int row = first + i + own;
    const bool is_there = row < length;
    if (i + ROWS_AT_ONCE <= ROWS || i + own < ROWS) {
      copy_async(target + i * WIDTH, source + static_cast<int64_t>(is_there ? row : 0) * row_bytes, is_there);
    }
  }
}

// Takes the keys from `count` on out of a round. Behind a sequence's end are zeros, which must not count.
__device__ __forceinline__ void hide_keys(float (&scores)[KEYS / 8][4], int count) {
  const int first = threadIdx.x % 4 * 2;
#pragma unroll
  for (int n = 0; n < KEYS / 8; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (first + n * 8 + i % 2 >= count) {
        scores[n][i] = -INFINITY;
      }
    }
  }
}

// For each lane's two rows: the largest score so far, and this lane's part of the sum of weights.
struct Softmax {
  float largest[2] = {-INFINITY, -INFINITY};
  float total[2] = {0.0f, 0.0f};

  // Replaces a round's scores with their weights, and scales the output so far as these are.
  template <int COLUMNS>
  __device__ __forceinline__ void add(float (&scores)[KEYS / 8][4], float (&answer)[COLUMNS][4], float factor) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float best = largest[half];
#pragma unroll
      for (int n = 0; n < KEYS / 8; ++n) {
        best = fmaxf(best, fmaxf(scores[n][2 * half], scores[n][2 * half + 1]));
      }
      best = row_max(best);
      const float shift = -best * factor;
      const float shrink = power_of_two(fmaf(largest[half], factor, shift));
      largest[half] = best;
      float sum = 0.0f;
#pragma unroll
      for (int n = 0; n < KEYS / 8; ++n) {
#pragma unroll
        for (int i = 2 * half; i < 2 * half + 2; ++i) {
          scores[n][i] = power_of_two(fmaf(scores[n][i], factor, shift));
          sum += scores[n][i];
        }
      }
      total[half] = total[half] * shrink + sum;
#pragma unroll
      for (int n = 0; n < COLUMNS; ++n) {
        answer[n][2 * half] *= shrink;
        answer[n][2 * half + 1] *= shrink;
      }
    }
  }
};

// The result registers of one instruction are the left operand of the next.
__device__ __forceinline__ void pack_weights(uint32_t (&weights)[4], const float (&even)[4], const float (&odd)[4]) {
  weights[0] = pack(even[0], even[1]);
  weights[1] = pack(even[2], even[3]);
  weights[2] = pack(odd[0], odd[1]);
  weights[3] = pack(odd[2], odd[3]);
}

// Writes a warp's 16 rows from `row` on, as far as the sequence goes, through `place` in shared memory, so that complete
// chunks are written.
template <int WIDTH>
__device__ __forceinline__ void write_rows(const float (&answer)[WIDTH / 8][4], const Softmax &softmax, uint16_t *place,
                                           uint16_t *out, int row, int length, int out_stride) {
  constexpr int CHUNKS = WIDTH / CHUNK;
  const int lane = threadIdx.x % LANES;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float inverse = 1.0f / row_sum(softmax.total[half]);
#pragma unroll
    for (int n = 0; n < CHUNKS; ++n) {
      uint16_t *pair = place + swizzled<WIDTH>(lane / 4 + 8 * half, n) + lane % 4 * 2;
      *reinterpret_cast<uint32_t *>(pair) = pack(answer[n][2 * half] * inverse, answer[n][2 * half + 1] * inverse);
    }
  }
  __syncwarp();
#pragma unroll
  for (int first = 0; first < FRAGMENT * CHUNKS; first += LANES) {
    const int own = (first + lane) / CHUNKS;
    const int chunk = (first + lane) % CHUNKS;
    if (row + own < length) {
      uint16_t *target = out + static_cast<int64_t>(row + own) * out_stride;
      put_chunk(target, chunk, *reinterpret_cast<const uint4 *>(place + swizzled<WIDTH>(own, chunk)));
    }
  }
}

} // namespace
