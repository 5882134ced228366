// softmax(scale (q kᵀ + bias)) v for every head and every sequence of a packed stream, without a matrix of scores:
// the online softmax of "FlashAttention-2" (Dao, 2023), on the tensor cores of sm_80 and later. The optional bias depends on
// the distance from the key to the query, and on the head.
//
// A block computes 128 queries of one head. Keys and values are loaded 64 at a time, the next ones while the current ones
// are used. Where a sequence's blocks begin depends on that sequence alone, and so do the bits of its outputs.
#include "attention_warp.cuh"

namespace {

constexpr int QUERIES = 128;
// Warps of a block with one fragment of queries each, and of one with two.
constexpr int WARPS = QUERIES / FRAGMENT;
constexpr int THREADS = WARPS * LANES;
constexpr int TALL = 2;
constexpr int TALL_THREADS = THREADS / TALL;

// `bias`, `[heads, bias_stride]`: for each head the values of keys from length - 1 before the query to as many behind it.
template <int WIDTH, bool IS_BIASED>
__device__ __forceinline__ void attend(const uint16_t *qkv, uint16_t *out, const float *bias, int bias_stride,
                                       const Bounds &bounds, int heads, int out_stride, float scale) {
  constexpr int PRODUCTS = WIDTH / DEPTH;
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
  copy_rows<WIDTH, QUERIES, THREADS>(tiles + STAGE, queries, stride, query, length);
  end_group();
  copy_rows<WIDTH, KEYS, THREADS>(tiles, keys, stride, 0, length);
  copy_rows<WIDTH, KEYS, THREADS>(tiles + KEYS * WIDTH, values, stride, 0, length);
  end_group();
  wait_for_groups<1>();
  __syncthreads();
  uint32_t q[PRODUCTS][4];
#pragma unroll
  for (int k = 0; k < PRODUCTS; ++k) {
    load_matrices(q[k], tiles + STAGE + (row_fragment<WIDTH>(warp * FRAGMENT, lane) ^ k * DEPTH));
  }
  __syncthreads();

  float answer[2 * PRODUCTS][4] = {};
  Softmax softmax;
  // Weights are powers of two.
  const float factor = scale * LOG2E;
  const int first_key = column_fragment<WIDTH>(0, lane);
  const int first_value = row_fragment<WIDTH>(KEYS, lane);

  const int rounds = (length + KEYS - 1) / KEYS;
  for (int round = 0; round < rounds; ++round) {
    const int next = (round + 1) * KEYS;
    if (next < length) {
      uint16_t *stage = tiles + (round + 1) % 2 * STAGE;
      copy_rows<WIDTH, KEYS, THREADS>(stage, keys, stride, next, length);
      copy_rows<WIDTH, KEYS, THREADS>(stage + KEYS * WIDTH, values, stride, next, length);
    }
    end_group();
    wait_for_groups<1>();
    __syncthreads();

    const int key_at = first_key + round % 2 * STAGE;
    float scores[KEYS / 8][4] = {};
#pragma unroll
    for (int k = 0; k < PRODUCTS; ++k) {
#pragma unroll
      for (int n = 0; n < KEYS / 16; ++n) {
        uint32_t b[4];
        load_matrices(b, tiles + (key_at ^ k * DEPTH) + n * 16 * WIDTH);
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
          const int row = query + warp * FRAGMENT + lane / 4 + i / 2 * 8;
          // Behind the sequence there is no bias, and no score that counts.
          scores[n][i] += key < length && row < length ? biases[key - row + length - 1] : 0.0f;
        }
      }
    }
    if (next > length) {
      hide_keys(scores, length - round * KEYS);
    }
    softmax.add(scores, answer, factor);

    const int value_at = first_value + round % 2 * STAGE;
#pragma unroll
    for (int k = 0; k < KEYS / DEPTH; ++k) {
      uint32_t weights[4];
      pack_weights(weights, scores[2 * k], scores[2 * k + 1]);
#pragma unroll
      for (int n = 0; n < PRODUCTS; ++n) {
        uint32_t b[4];
        load_matrices_transposed(b, tiles + (value_at ^ n * 16) + k * DEPTH * WIDTH);
        multiply_add(answer[2 * n], weights, b[0], b[1]);
        multiply_add(answer[2 * n + 1], weights, b[2], b[3]);
      }
    }
    __syncthreads();
  }
  // Each warp has its own part.
  const int row = query + warp * FRAGMENT;
  write_rows<WIDTH>(answer, softmax, tiles + warp * FRAGMENT * WIDTH, out + first * out_stride + blockIdx.y * WIDTH, row,
                    length, out_stride);
}

// The same with two fragments of queries in each of half as many warps: keys and values are read from shared memory half as
// often. The outputs take the queries' registers, so the queries are read again in each round. Keys and values have one place
// each: one is loaded while the other is used, and where two blocks share a multiprocessor, one multiplies while the other
// waits.
template <int WIDTH>
__device__ __forceinline__ void attend_tall(const uint16_t *qkv, uint16_t *out, const Bounds &bounds, int heads,
                                            int out_stride, float scale) {
  constexpr int PRODUCTS = WIDTH / DEPTH;
  SHARED_BYTES(shared);
  uint16_t *tiles = reinterpret_cast<uint16_t *>(shared);
  uint16_t *key_tile = tiles + QUERIES * WIDTH;
  uint16_t *value_tile = key_tile + KEYS * WIDTH;
  const int lane = threadIdx.x % LANES;
  const int own_row = threadIdx.x / LANES * (TALL * FRAGMENT);

  const auto [first, length, query] = task_of<QUERIES>(bounds, blockIdx.x);
  if (length == 0) {
    return;
  }
  const int part = heads * WIDTH;
  const int stride = 3 * part;
  const uint16_t *queries = qkv + first * stride + blockIdx.y * WIDTH;
  const uint16_t *keys = queries + part;
  const uint16_t *values = keys + part;
  copy_rows<WIDTH, QUERIES, TALL_THREADS>(tiles, queries, stride, query, length);
  copy_rows<WIDTH, KEYS, TALL_THREADS>(key_tile, keys, stride, 0, length);
  end_group();

  float answer[TALL][2 * PRODUCTS][4] = {};
  Softmax softmax[TALL];
  // Weights are powers of two.
  const float factor = scale * LOG2E;
  const int query_at = row_fragment<WIDTH>(own_row, lane);
  const int key_at = column_fragment<WIDTH>(QUERIES, lane);
  const int value_at = row_fragment<WIDTH>(QUERIES + KEYS, lane);

  for (int key = 0; key < length; key += KEYS) {
    // The keys are there, and all threads have read the last values.
    wait_for_groups<0>();
    __syncthreads();
    copy_rows<WIDTH, KEYS, TALL_THREADS>(value_tile, values, stride, key, length);
    end_group();

    float scores[TALL][KEYS / 8][4] = {};
    // Unrolled, it loads so far ahead that registers are spilled on sm_80.
#pragma unroll 1
    for (int k = 0; k < PRODUCTS; ++k) {
      uint32_t a[TALL][4];
#pragma unroll
      for (int m = 0; m < TALL; ++m) {
        load_matrices(a[m], tiles + (query_at ^ k * DEPTH) + m * FRAGMENT * WIDTH);
      }
#pragma unroll
      for (int n = 0; n < KEYS / 16; ++n) {
        uint32_t b[4];
        load_matrices(b, tiles + (key_at ^ k * DEPTH) + n * 16 * WIDTH);
#pragma unroll
        for (int m = 0; m < TALL; ++m) {
          multiply_add(scores[m][2 * n], a[m], b[0], b[1]);
          multiply_add(scores[m][2 * n + 1], a[m], b[2], b[3]);
        }
      }
    }
    // The values are there, and all threads have read the keys.
    wait_for_groups<0>();
    __syncthreads();
    const int next = key + KEYS;
    if (next < length) {
      copy_rows<WIDTH, KEYS, TALL_THREADS>(key_tile, keys, stride, next, length);
    }
    end_group();
#pragma unroll
    for (int m = 0; m < TALL; ++m) {
      if (next > length) {
        hide_keys(scores[m], length - key);
      }
      softmax[m].add(scores[m], answer[m], factor);
    }

#pragma unroll
    for (int k = 0; k < KEYS / DEPTH; ++k) {
      uint32_t weights[TALL][4];
#pragma unroll
      for (int m = 0; m < TALL; ++m) {
        pack_weights(weights[m], scores[m][2 * k], scores[m][2 * k + 1]);
      }
#pragma unroll
      for (int n = 0; n < PRODUCTS; ++n) {
        uint32_t b[4];
        load_matrices_transposed(b, tiles + (value_at ^ n * 16) + k * DEPTH * WIDTH);
#pragma unroll
        for (int m = 0; m < TALL; ++m) {
          multiply_add(answer[m][2 * n], weights[m], b[0], b[1]);
          multiply_add(answer[m][2 * n + 1], weights[m], b[2], b[3]);
        }
      }
    }
  }
  // In place of a warp's queries, which no other warp reads.
#pragma unroll
  for (int m = 0; m < TALL; ++m) {
    const int row = own_row + m * FRAGMENT;
    write_rows<WIDTH>(answer[m], softmax[m], tiles + row * WIDTH, out + first * out_stride + blockIdx.y * WIDTH, query + row,
                      length, out_stride);
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

// The same by 128 threads. For devices where two blocks share a multiprocessor.
#define TALL_ATTENTION(width)                                                                                           \
  extern "C" __global__ void __launch_bounds__(TALL_THREADS, 2)                                                         \
      attention_tall_##width(const uint16_t *qkv, uint16_t *out, Bounds bounds, int heads, int out_stride,              \
                             float scale) {                                                                             \
    attend_tall<width>(qkv, out, bounds, heads, out_stride, scale);                                                     \
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
TALL_ATTENTION(128)
BIASED_ATTENTION(16)
BIASED_ATTENTION(32)
BIASED_ATTENTION(64)
