// softmax(scale (q kᵀ + bias)) v for every head and every sequence of a packed stream, without a matrix of scores:
// the online softmax of "FlashAttention-2" (Dao, 2023), on the tensor cores of sm_80 and later. The optional bias depends on
// the distance from the key to the query, and on the head.
//
// A block computes 128 queries of one head. Keys and values are loaded 64 at a time, the next ones while the current ones
// are used. Where a sequence's blocks begin depends on that sequence alone, and so do the bits of its outputs.
#include "attention.cuh"

namespace {

constexpr int WARPS = 8;
constexpr int THREADS = WARPS * LANES;
// Queries of one warp: the rows of one tensor-core instruction.
constexpr int WARP_QUERIES = 16;
constexpr int QUERIES = WARPS * WARP_QUERIES;
constexpr int KEYS = 64;

// Position of a row's chunk in shared memory: neighboring rows begin in different banks.
template <int WIDTH> __device__ __forceinline__ int swizzled(int row, int chunk) {
  constexpr int CHUNKS = WIDTH / CHUNK;
  constexpr int MASK = (CHUNKS < 8 ? CHUNKS : 8) - 1;
  return row * WIDTH + (chunk ^ (row & MASK)) * CHUNK;
}

// Starts to copy `ROWS` rows of a sequence from row `first` on; those behind its end become zero. The number of turns does not
// depend on the thread, so that the compiler unrolls them, and a row's distance fits one multiplication.
template <int WIDTH, int ROWS>
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

// `bias`, `[heads, bias_stride]`: for each head the values of keys from length - 1 before the query to as many behind it.
template <int WIDTH, bool IS_BIASED>
__device__ __forceinline__ void attend(const uint16_t *qkv, uint16_t *out, const float *bias, int bias_stride,
                                       const Bounds &bounds, int heads, int out_stride, float scale) {
  constexpr int PRODUCTS = WIDTH / 16;
  SHARED_BYTES(shared);
  uint16_t *tiles = reinterpret_cast<uint16_t *>(shared);
  const int warp = threadIdx.x / LANES;
  const int lane = threadIdx.x % LANES;

  const auto [first, length, query] = task_of<QUERIES>(bounds, blockIdx.x);
  if (length == 0) {
    return;
  }
  const int part = heads * WIDTH;
  const int stride = 3 * part;
  const uint16_t *queries = qkv + first * stride + blockIdx.y * WIDTH;
  const uint16_t *keys = queries + part;
  const uint16_t *values = keys + part;
  float *biases = reinterpret_cast<float *>(tiles + 4 * KEYS * WIDTH);
  if (IS_BIASED) {
    // The barrier after loading the queries serves this, too.
    for (int i = threadIdx.x; i < 2 * length - 1; i += THREADS) {
      biases[i] = bias[static_cast<int64_t>(blockIdx.y) * bias_stride + i];
    }
  }

  // Two stages of keys and values; the queries are loaded through the second, which is not needed yet.
  constexpr int STAGE = 2 * KEYS * WIDTH;
  copy_rows<WIDTH, QUERIES>(tiles + STAGE, queries, stride, query, length);
  end_group();
  copy_rows<WIDTH, KEYS>(tiles, keys, stride, 0, length);
  copy_rows<WIDTH, KEYS>(tiles + KEYS * WIDTH, values, stride, 0, length);
  end_group();
  wait_for_groups<1>();
  __syncthreads();
  uint32_t q[PRODUCTS][4];
#pragma unroll
  for (int k = 0; k < PRODUCTS; ++k) {
    const int row = warp * WARP_QUERIES + (lane / 8 % 2) * 8 + lane % 8;
    load_matrices(q[k], tiles + STAGE + swizzled<WIDTH>(row, 2 * k + lane / 16));
  }
  __syncthreads();

  // For each lane's two rows: the output so far, the largest score, and this lane's part of the sum of weights.
  float answer[2 * PRODUCTS][4] = {};
  float largest[2] = {-INFINITY, -INFINITY};
  float total[2] = {0.0f, 0.0f};
  // Weights are powers of two.
  const float factor = scale * 1.4426950408889634f;

  // Positions of the first two chunks of keys and values that this lane's matrices need. Those further right differ from them
  // in the chunk's bits: one exclusive or, whatever the swizzle.
  const int first_key = swizzled<WIDTH>(lane / 16 * 8 + lane % 8, lane / 8 % 2);
  const int first_value = KEYS * WIDTH + swizzled<WIDTH>(lane / 8 % 2 * 8 + lane % 8, lane / 16);

  const int rounds = (length + KEYS - 1) / KEYS;
  for (int round = 0; round < rounds; ++round) {
    const int key_at = first_key + round % 2 * STAGE;
    const int value_at = first_value + round % 2 * STAGE;
    const int next = (round + 1) * KEYS;
    if (next < length) {
      uint16_t *stage = tiles + (round + 1) % 2 * STAGE;
      copy_rows<WIDTH, KEYS>(stage, keys, stride, next, length);
      copy_rows<WIDTH, KEYS>(stage + KEYS * WIDTH, values, stride, next, length);
    }
    end_group();
    wait_for_groups<1>();
    __syncthreads();

    float scores[KEYS / 8][4] = {};
#pragma unroll
    for (int k = 0; k < PRODUCTS; ++k) {
#pragma unroll
      for (int n = 0; n < KEYS / 16; ++n) {
        uint32_t b[4];
        load_matrices(b, tiles + (key_at ^ 2 * k * CHUNK) + n * 16 * WIDTH);
        multiply_add(scores[2 * n], q[k], b[0], b[1]);
        multiply_add(scores[2 * n + 1], q[k], b[2], b[3]);
      }
    }
    if (IS_BIASED) {
#pragma unroll
      for (int n = 0; n < KEYS / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int key = round * KEYS + n * 8 + lane % 4 * 2 + i % 2;
          const int row = query + warp * WARP_QUERIES + lane / 4 + i / 2 * 8;
          // Behind the sequence there is no bias, and no score that counts.
          scores[n][i] += key < length && row < length ? biases[key - row + length - 1] : 0.0f;
        }
      }
    }
    if (next > length) {
      // Behind the sequence's end are zeros, which must not count.
#pragma unroll
      for (int n = 0; n < KEYS / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          if (round * KEYS + n * 8 + lane % 4 * 2 + i % 2 >= length) {
            scores[n][i] = -INFINITY;
          }
        }
      }
    }

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
      for (int n = 0; n < 2 * PRODUCTS; ++n) {
        answer[n][2 * half] *= shrink;
        answer[n][2 * half + 1] *= shrink;
      }
    }

#pragma unroll
    for (int k = 0; k < KEYS / 16; ++k) {
      // The result registers of one instruction are the left operand of the next.
      const float(&even)[4] = scores[2 * k];
      const float(&odd)[4] = scores[2 * k + 1];
      const uint32_t weights[4] = {pack(even[0], even[1]), pack(even[2], even[3]), pack(odd[0], odd[1]),
                                   pack(odd[2], odd[3])};
#pragma unroll
      for (int n = 0; n < PRODUCTS; ++n) {
        uint32_t b[4];
        load_matrices_transposed(b, tiles + (value_at ^ 2 * n * CHUNK) + k * 16 * WIDTH);
        multiply_add(answer[2 * n], weights, b[0], b[1]);
        multiply_add(answer[2 * n + 1], weights, b[2], b[3]);
      }
    }
    __syncthreads();
  }

  // Through shared memory, so that complete chunks are written. Each warp has its own part.
  uint16_t *place = tiles + warp * WARP_QUERIES * WIDTH;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float inverse = 1.0f / row_sum(total[half]);
#pragma unroll
    for (int n = 0; n < 2 * PRODUCTS; ++n) {
      uint16_t *pair = place + swizzled<WIDTH>(lane / 4 + 8 * half, n) + lane % 4 * 2;
      *reinterpret_cast<uint32_t *>(pair) = pack(answer[n][2 * half] * inverse, answer[n][2 * half + 1] * inverse);
    }
  }
  __syncwarp();
  constexpr int CHUNKS = WIDTH / CHUNK;
  for (int i = lane; i < WARP_QUERIES * CHUNKS; i += LANES) {
    const int row = i / CHUNKS;
    const int chunk = i % CHUNKS;
    const int64_t at = query + warp * WARP_QUERIES + row;
    if (at < length) {
      uint16_t *target = out + (first + at) * out_stride + blockIdx.y * WIDTH;
      put_chunk(target, chunk, *reinterpret_cast<const uint4 *>(place + swizzled<WIDTH>(row, chunk)));
    }
  }
}

} // namespace

// `qkv [rows, 3 × heads × head width]`, contiguous -> `out [rows, heads × head width]`, with `out_stride` values from row to
// row; bf16, aligned to 16 bytes.
// Grid: (the sum over sequences of ceil(length / 128), heads); 256 threads; 512 bytes of shared memory × head width.
#define ATTENTION(width)                                                                                                \
  extern "C" __global__ void __launch_bounds__(THREADS, 1)                                                              \
      attention_##width(const uint16_t *qkv, uint16_t *out, Bounds bounds, int heads, int out_stride, float scale) {    \
    attend<width, false>(qkv, out, nullptr, 0, bounds, heads, out_stride, scale);                                       \
  }

// With a bias, in f32, for sequences of one length; it takes another 8 bytes × that length of shared memory.
#define BIASED_ATTENTION(width)                                                                                         \
  extern "C" __global__ void __launch_bounds__(THREADS, 1)                                                              \
      biased_attention_##width(const uint16_t *qkv, uint16_t *out, const float *bias, int bias_stride, Bounds bounds,   \
                               int heads, int out_stride, float scale) {                                                \
    attend<width, true>(qkv, out, bias, bias_stride, bounds, heads, out_stride, scale);                                 \
  }

ATTENTION(16)
ATTENTION(32)
ATTENTION(64)
ATTENTION(128)
BIASED_ATTENTION(16)
BIASED_ATTENTION(32)
BIASED_ATTENTION(64)
