// The attention of attention.cu at a head width of 128, by the matrix instructions of sm_90a: two warpgroups of 64 queries
// each, keys and values 128 at a time. The tensor cores work while the weights of the next keys are computed
// ("FlashAttention-3", Shah et al., 2024).
//
// Keys are taken from the sequence's end to its beginning, so that only the first tile can be partial. Where a sequence's
// blocks and tiles begin depends on that sequence alone, and so do the bits of its outputs.
#include "attention.cuh"
#include "warpgroup.cuh"

// Other devices do not have these instructions; for them the kernel is empty.
#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || !defined(__CUDACC__)

namespace {

constexpr int WIDTH = 128;
constexpr int GROUPS = 2;
constexpr int THREADS = GROUPS * WARPGROUP;
// Queries of one warpgroup: the rows of one of its instructions.
constexpr int GROUP_QUERIES = 64;
constexpr int QUERIES = GROUPS * GROUP_QUERIES;
// Rows of a tile. Tiles of queries, keys and values have the same shape.
constexpr int KEYS = 128;
constexpr int TILE = KEYS * WIDTH;
constexpr int PANEL_BYTES = KEYS * PANEL * 2;
static_assert(QUERIES == KEYS, "one shape of tiles");

constexpr int CHUNKS = WIDTH / CHUNK;
// Terms of the sum in one instruction.
constexpr int DEPTH = 16;

// Starts to copy a tile of a sequence's rows from `first` on. Rows behind the sequence's end become zeros: in memory they are
// another sequence's, and need not be finite. A row's distance takes one multiplication.
template <bool IS_WHOLE>
__device__ __forceinline__ void copy_tile(uint16_t *tile, const uint16_t *sequence, int stride, int first, int length) {
  constexpr int ROWS_AT_ONCE = THREADS / CHUNKS;
  static_assert(ROWS_AT_ONCE % 8 == 0, "a thread's chunks are below each other");
  const int first_row = threadIdx.x / CHUNKS;
  const int chunk = threadIdx.x % CHUNKS;
  uint16_t *target = tile + in_panels<KEYS>(first_row, chunk);
  const char *source = reinterpret_cast<const char *>(sequence + chunk * CHUNK);
  const int row_bytes = stride * static_cast<int>(sizeof(uint16_t));
#pragma unroll
  for (int i = 0; i < KEYS; i += ROWS_AT_ONCE) {
    const int row = first + first_row + i;
    const bool is_there = IS_WHOLE || row < length;
    copy_async(target + i * PANEL, source + static_cast<int64_t>(is_there ? row : 0) * row_bytes, is_there);
  }
}

// The barrier at which the second warpgroup waits for the first one's scores to be started.
constexpr int FIRST_GROUP_AHEAD = 1;

// Starts a tile's scores: 64 queries by 128 keys.
__device__ __forceinline__ void multiply_by_keys(float (&scores)[64], uint64_t queries, uint64_t keys) {
#pragma unroll
  for (int k = 0; k < WIDTH / DEPTH; ++k) {
    const int at = k * DEPTH / PANEL * PANEL_BYTES + k * DEPTH % PANEL * 2;
    if (k == 0) {
      multiply_panels(scores, queries, keys);
    } else {
      multiply_add_panels(scores, further(queries, at), further(keys, at));
    }
  }
  end_products();
}

// Starts to add a tile's values, times their weights, to the output.
__device__ __forceinline__ void multiply_by_values(float (&answer)[64], const uint32_t (&weights)[8][4], uint64_t values) {
#pragma unroll
  for (int k = 0; k < KEYS / DEPTH; ++k) {
    multiply_add_rows(answer, weights[k], further(values, k * (DEPTH / 8) * EIGHT_ROWS_BYTES));
  }
  end_products();
}

// For each lane's two rows: the largest score so far and this lane's part of the sum of weights. Scores are logarithms of
// the weights to the base 2.
struct Softmax {
  float largest[2] = {-INFINITY, -INFINITY};
  float total[2] = {0.0f, 0.0f};

  // Replaces a tile's scores with its weights, and returns the factors for all earlier weights.
  __device__ __forceinline__ void add(float (&scores)[64], float factor, float (&shrink)[2]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float best = -INFINITY;
#pragma unroll
      for (int i = 2 * half; i < 64; i += 4) {
        best = fmaxf(best, fmaxf(scores[i], scores[i + 1]));
      }
      best = fmaxf(largest[half], row_max(best) * factor);
      shrink[half] = power_of_two(largest[half] - best);
      largest[half] = best;
      float sum = 0.0f;
#pragma unroll
      for (int i = 2 * half; i < 64; i += 4) {
        scores[i] = power_of_two(fmaf(scores[i], factor, -best));
        scores[i + 1] = power_of_two(fmaf(scores[i + 1], factor, -best));
        sum += scores[i] + scores[i + 1];
      }
      total[half] = total[half] * shrink[half] + sum;
    }
  }
};

// The result registers of one instruction are the left operand of the next.
__device__ __forceinline__ void pack_weights(uint32_t (&weights)[8][4], const float (&scores)[64]) {
#pragma unroll
  for (int i = 0; i < 32; ++i) {
    weights[i / 4][i % 4] = pack(scores[2 * i], scores[2 * i + 1]);
  }
}

// Multiplies each lane's two rows, each by its factor.
__device__ __forceinline__ void scale_rows(float (&answer)[64], const float (&factors)[2]) {
#pragma unroll
  for (int i = 0; i < 64; ++i) {
    answer[i] *= factors[i / 2 % 2];
  }
}

// Both warpgroups come to their scores at the same time. If the tensor cores serve them by turns, both are done at the end and
// compute weights at the same time. If the groups are ordered, the first group's scores are done halfway, and its weights are
// computed while the second group multiplies. Which is faster has not been measured.
template <bool IS_ORDERED>
__device__ __forceinline__ void attend(const uint16_t *qkv, uint16_t *out, const Bounds &bounds, int heads, int out_stride,
                                       float scale) {
  SHARED_BYTES(shared);
  const auto [first, length, query] = task_of<QUERIES>(bounds, blockIdx.x);
  if (length == 0) {
    return;
  }
  const int part = heads * WIDTH;
  const int stride = 3 * part;
  const uint16_t *queries = qkv + first * stride + blockIdx.y * WIDTH;
  const uint16_t *keys = queries + part;
  const uint16_t *values = keys + part;

  // The queries, then two buffers for keys and two for values.
  const uint32_t unaligned = shared_address(shared);
  const uint32_t skipped = (TILE_ALIGNMENT - unaligned % TILE_ALIGNMENT) % TILE_ALIGNMENT;
  uint16_t *query_tile = reinterpret_cast<uint16_t *>(shared + skipped);
  uint16_t *key_tiles = query_tile + TILE;
  uint16_t *value_tiles = key_tiles + 2 * TILE;
  const uint32_t start = unaligned + skipped;
  const int group = same_in_warp(threadIdx.x / WARPGROUP);
  const uint64_t query_matrix = matrix_at(start + group * GROUP_QUERIES * PANEL * 2, WITHIN_PANEL);
  const auto key_matrix = [&](int turn) { return matrix_at(start + (1 + turn % 2) * TILE * 2, WITHIN_PANEL); };
  const auto value_matrix = [&](int turn) { return matrix_at(start + (3 + turn % 2) * TILE * 2, PANEL_BYTES); };

  const auto start_scores = [&](float(&scores)[64], int turn) {
    if (IS_ORDERED && group == 1) {
      wait_at<FIRST_GROUP_AHEAD, THREADS>();
    }
    order_registers();
    multiply_by_keys(scores, query_matrix, key_matrix(turn));
    if (IS_ORDERED && group == 0) {
      arrive_at<FIRST_GROUP_AHEAD, THREADS>();
    }
  };

  float answer[64] = {};
  float scores[64];
  uint32_t weights[8][4] = {};
  Softmax softmax;
  float shrink[2];
  // Weights are powers of two.
  const float factor = scale * 1.4426950408889634f;

  // Each turn takes one tile of keys. One group of copies is pending at any time: the next turn's keys and this turn's
  // values, which are needed then as well.
  const int turns = (length + KEYS - 1) / KEYS;
  const int tail = (turns - 1) * KEYS;
  copy_tile<false>(query_tile, queries, stride, query, length);
  copy_tile<false>(key_tiles, keys, stride, tail, length);
  end_group();
  wait_for_groups<0>();
  publish_copies();
  __syncthreads();
  start_scores(scores, 0);
  if (turns > 1) {
    copy_tile<true>(key_tiles + TILE, keys, stride, tail - KEYS, length);
  }
  copy_tile<false>(value_tiles, values, stride, tail, length);
  end_group();
  wait_for_products<0>(scores);
  if (tail + KEYS > length) {
    // Behind the sequence's end are zeros, which must not count.
    const int column = tail + threadIdx.x % 4 * 2;
#pragma unroll
    for (int i = 0; i < 64; ++i) {
      if (column + i / 4 * 8 + i % 2 >= length) {
        scores[i] = -INFINITY;
      }
    }
  }
  softmax.add(scores, factor, shrink);

  for (int turn = 1; turn < turns; ++turn) {
    // The copies of the turn before last had the whole weight computation to finish.
    wait_for_products<0>(answer, weights);
    pack_weights(weights, scores);
    wait_for_groups<0>();
    publish_copies();
    // After this the copies of all threads are done, and no thread reads the tiles of the turn before last.
    __syncthreads();
    start_scores(scores, turn);
    const int at = tail - turn * KEYS;
    if (turn + 1 < turns) {
      copy_tile<true>(key_tiles + (turn + 1) % 2 * TILE, keys, stride, at - KEYS, length);
    }
    copy_tile<true>(value_tiles + turn % 2 * TILE, values, stride, at, length);
    end_group();
    scale_rows(answer, shrink);
    order_registers(answer, weights);
    multiply_by_values(answer, weights, value_matrix(turn - 1));
    wait_for_products<1>(scores);
    softmax.add(scores, factor, shrink);
  }
  wait_for_products<0>(answer, weights);
  pack_weights(weights, scores);
  scale_rows(answer, shrink);
  wait_for_groups<0>();
  publish_copies();
  __syncthreads();
  order_registers(answer, weights);
  multiply_by_values(answer, weights, value_matrix(turns - 1));
  wait_for_products<0>(answer, weights);

  // Through shared memory, so that complete chunks are written: in place of the queries, which are not read any more. Each
  // warp has its own 16 rows.
  const int lane = threadIdx.x % LANES;
  const int row = threadIdx.x / LANES * 16;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float inverse = 1.0f / row_sum(softmax.total[half]);
#pragma unroll
    for (int n = 0; n < CHUNKS; ++n) {
      uint16_t *pair = query_tile + in_panels<QUERIES>(row + lane / 4 + 8 * half, n) + lane % 4 * 2;
      const int i = 4 * n + 2 * half;
      *reinterpret_cast<uint32_t *>(pair) = pack(answer[i] * inverse, answer[i + 1] * inverse);
    }
  }
  __syncwarp();
#pragma unroll
  for (int i = lane; i < 16 * CHUNKS; i += LANES) {
    const int64_t at = query + row + i / CHUNKS;
    if (at < length) {
      uint16_t *target = out + (first + at) * out_stride + blockIdx.y * WIDTH;
      const uint16_t *source = query_tile + in_panels<QUERIES>(row + i / CHUNKS, i % CHUNKS);
      put_chunk(target, i % CHUNKS, *reinterpret_cast<const uint4 *>(source));
    }
  }
}

} // namespace

// `qkv [rows, 3 × heads × 128]`, contiguous -> `out [rows, heads × 128]`, with `out_stride` values from row to row; bf16,
// aligned to 16 bytes.
// Grid: (the sum over sequences of ceil(length / 128), heads); 256 threads; 161 KiB of shared memory: five tiles of 32 KiB,
// and the alignment.
#define ATTENTION(name, is_ordered)                                                                                     \
  extern "C" __global__ void __launch_bounds__(THREADS, 1)                                                              \
      name(const uint16_t *qkv, uint16_t *out, Bounds bounds, int heads, int out_stride, float scale) {                 \
    attend<is_ordered>(qkv, out, bounds, heads, out_stride, scale);                                                     \
  }

ATTENTION(attention_hopper_128, false)
ATTENTION(attention_hopper_ordered_128, true)

#endif
