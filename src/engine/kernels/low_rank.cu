// Changes of low rank of the rows of matrix products: each adds scale × (x downᵀ) upᵀ to some columns of some rows. Two launches
// for all changes of a step: one multiplies by `down`, one by `up`.
//
// The order of a row's additions depends on the row's own changes alone, so that its bits do not depend on the other rows. Changes
// of the same rows are added to each other before the result is rounded, in their order.
#include "device.cuh"

// Most changes in one launch.
constexpr int PARTS_MAX = 48;

// A change. `Part` in ops/cuda/low_rank.rs has the same layout.
struct LowRankPart {
  // [rank, inputs] and [columns, rank].
  const uint16_t *down, *up;
  int first_row, rows;
  int first_column, columns;
  // A multiple of eight.
  int rank;
  // Where its rows between the two products begin, in values.
  int at;
  float scale;
  // Of the first of the changes of the same rows, which follow each other: how many there are, and which tiles of columns they
  // touch. Zero for the others.
  int group, first_tile, tiles;
};

// Passed by value, without an upload.
struct LowRankParts {
  int count;
  LowRankPart at[PARTS_MAX];
};

namespace {

constexpr int WARPS = 4;
constexpr int THREADS = WARPS * LANES;
// Rows of a block: 16 for each warp.
constexpr int ROWS = 16 * WARPS;
// Ranks of a block of the first product, and columns of one of the second.
constexpr int RANKS = 32;
constexpr int COLUMNS = 64;
// Inputs, or ranks, in shared memory at a time, and how many times that of the first product.
constexpr int STEP = 64;
constexpr int STAGES = 4;

__device__ __forceinline__ int tiles_of(int count, int tile) { return (count + tile - 1) / tile; }

// Position of a row's chunk in shared memory: any eight successive rows are in different banks.
__device__ __forceinline__ int swizzled(int row, int chunk) { return row * STEP + (chunk ^ (row & 7)) * CHUNK; }

// A matrix in global memory.
struct Source {
  const uint16_t *values;
  int64_t stride;
  int rows, columns;
};

// Starts to copy `COUNT` rows of `STEP` values from (row, column) on. What is outside of the matrix becomes zeros.
template <int COUNT>
__device__ __forceinline__ void copy_tile(uint16_t *tile, const Source &source, int row, int column) {
  constexpr int CHUNKS = STEP / CHUNK;
  constexpr int ROWS_AT_ONCE = THREADS / CHUNKS;
  static_assert(COUNT % ROWS_AT_ONCE == 0, "all threads copy equally much");
  const int own = threadIdx.x / CHUNKS;
  const int chunk = threadIdx.x % CHUNKS;
  const int from = column + chunk * CHUNK;
#pragma unroll
  for (int i = 0; i < COUNT; i += ROWS_AT_ONCE) {
    const int at = row + i + own;
    const bool is_there = at >= 0 && at < source.rows && from < source.columns;
    copy_async(tile + swizzled(i + own, chunk), source.values + (is_there ? at * source.stride + from : 0), is_there);
  }
}

// sums += a warp's 16 rows of `left` times the first 8 `N` rows of `right`, over 16 values from 16 `k` on.
template <int N>
__device__ __forceinline__ void multiply(float (&sums)[N][4], const uint16_t *left, const uint16_t *right, int k) {
  const int lane = threadIdx.x % LANES;
  uint32_t a[4];
  load_matrices(a, left + swizzled(threadIdx.x / LANES * 16 + lane % 16, 2 * k + lane / 16));
#pragma unroll
  for (int n = 0; n < N / 2; ++n) {
    uint32_t b[4];
    load_matrices(b, right + swizzled(n * 16 + lane / 16 * 8 + lane % 8, 2 * k + lane / 8 % 2));
    multiply_add(sums[2 * n], a, b[0], b[1]);
    multiply_add(sums[2 * n + 1], a, b[2], b[3]);
  }
}

// Where in shared memory a lane has two neighboring sums of a tile: of fragment `n`, in the upper or the lower rows.
__device__ __forceinline__ uint32_t *pair_of(uint16_t *tile, int n, int half) {
  const int lane = threadIdx.x % LANES;
  return reinterpret_cast<uint32_t *>(tile + swizzled(threadIdx.x / LANES * 16 + lane / 4 + 8 * half, n) + lane % 4 * 2);
}

// Whether a change has some of `count` columns from `first` on.
__device__ __forceinline__ bool touches(const LowRankPart &part, int first, int count) {
  return part.first_column < first + count && first < part.first_column + part.columns;
}

} // namespace

// inner = scale × x downᵀ for each change, rounded: `[rows, rank]` from `at` on. Rows of `x` are a multiple of eight values.
// Grid: for each change its tiles of rows times its tiles of ranks.
extern "C" __global__ void __launch_bounds__(THREADS)
    low_rank_shrink(const uint16_t *x, uint16_t *inner, const LowRankParts parts, int inputs, int stride) {
  int block = blockIdx.x;
  int index = 0;
  while (index < parts.count) {
    const int blocks = tiles_of(parts.at[index].rows, ROWS) * tiles_of(parts.at[index].rank, RANKS);
    if (block < blocks) {
      break;
    }
    block -= blocks;
    ++index;
  }
  if (index == parts.count) {
    return;
  }
  const int rows = parts.at[index].rows;
  const int rank = parts.at[index].rank;
  const int across = tiles_of(rank, RANKS);
  const int first_row = block / across * ROWS;
  const int first_rank = block % across * RANKS;
  const Source left = {x + static_cast<int64_t>(parts.at[index].first_row) * stride, stride, rows, inputs};
  const Source right = {parts.at[index].down, inputs, rank, inputs};

  SHARED_BYTES(shared);
  uint16_t *tiles = reinterpret_cast<uint16_t *>(shared);
  constexpr int STAGE = (ROWS + RANKS) * STEP;
  const auto copy = [&](int step) {
    uint16_t *stage = tiles + step % STAGES * STAGE;
    copy_tile<ROWS>(stage, left, first_row, step * STEP);
    copy_tile<RANKS>(stage + ROWS * STEP, right, first_rank, step * STEP);
  };
  const int steps = tiles_of(inputs, STEP);
#pragma unroll
  for (int step = 0; step < STAGES - 1; ++step) {
    if (step < steps) {
      copy(step);
    }
    end_group();
  }
  float sums[RANKS / 8][4] = {};
  for (int step = 0; step < steps; ++step) {
    wait_for_groups<STAGES - 2>();
    // All have waited for their own copies, and no warp still reads the stage that is copied next.
    __syncthreads();
    if (step + STAGES - 1 < steps) {
      copy(step + STAGES - 1);
    }
    end_group();
    const uint16_t *stage = tiles + step % STAGES * STAGE;
#pragma unroll
    for (int k = 0; k < STEP / 16; ++k) {
      multiply(sums, stage, stage + ROWS * STEP, k);
    }
  }
  // Through shared memory, so that complete chunks are written.
  wait_for_groups<0>();
  __syncthreads();
  const float scale = parts.at[index].scale;
#pragma unroll
  for (int n = 0; n < RANKS / 8; ++n) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      *pair_of(tiles, n, half) = pack(scale * sums[n][2 * half], scale * sums[n][2 * half + 1]);
    }
  }
  __syncwarp();
  uint16_t *target = inner + parts.at[index].at;
  const int lane = threadIdx.x % LANES;
#pragma unroll
  for (int first = 0; first < 16 * RANKS / CHUNK; first += LANES) {
    const int own = threadIdx.x / LANES * 16 + (first + lane) / (RANKS / CHUNK);
    const int chunk = (first + lane) % (RANKS / CHUNK);
    const int column = first_rank + chunk * CHUNK;
    if (first_row + own < rows && column < rank) {
      put_chunk(target + static_cast<int64_t>(first_row + own) * rank + column, 0,
                *reinterpret_cast<const uint4 *>(tiles + swizzled(own, chunk)));
    }
  }
}

// out += inner upᵀ for each change, in place. Columns that no change of a row has stay as they are. Rows of `out` have `width`
// values, a multiple of eight. Grid: for each group its tiles of rows times the tiles of columns that it touches.
// Four blocks on a multiprocessor: for more, the compiler would spill on 9.0.
extern "C" __global__ void __launch_bounds__(THREADS, 4)
    low_rank_expand(uint16_t *out, const uint16_t *inner, const LowRankParts parts, int width, int stride) {
  int block = blockIdx.x;
  int index = 0;
  while (index < parts.count) {
    const int blocks = tiles_of(parts.at[index].rows, ROWS) * parts.at[index].tiles;
    if (block < blocks) {
      break;
    }
    block -= blocks;
    ++index;
  }
  if (index == parts.count) {
    return;
  }
  const int end = index + parts.at[index].group;
  const int rows = parts.at[index].rows;
  const int first_row = block / parts.at[index].tiles * ROWS;
  const int first_column = (parts.at[index].first_tile + block % parts.at[index].tiles) * COLUMNS;
  out += static_cast<int64_t>(parts.at[index].first_row) * stride;

  SHARED_BYTES(shared);
  uint16_t *outs = reinterpret_cast<uint16_t *>(shared);
  uint16_t *left = outs + ROWS * STEP;
  uint16_t *right = left + ROWS * STEP;
  static_assert(COLUMNS == STEP, "a tile of the output is as wide as those of the operands");
  copy_tile<ROWS>(outs, {out, stride, rows, width}, first_row, first_column);
  end_group();
  float sums[COLUMNS / 8][4] = {};
  for (int part = index; part < end; ++part) {
    if (!touches(parts.at[part], first_column, COLUMNS)) {
      continue;
    }
    const int rank = parts.at[part].rank;
    const Source inner_rows = {inner + parts.at[part].at, rank, rows, rank};
    const Source up = {parts.at[part].up, rank, parts.at[part].columns, rank};
    for (int from = 0; from < rank; from += STEP) {
      // The tiles before are read.
      __syncthreads();
      copy_tile<ROWS>(left, inner_rows, first_row, from);
      copy_tile<COLUMNS>(right, up, first_column - parts.at[part].first_column, from);
      end_group();
      wait_for_groups<0>();
      __syncthreads();
#pragma unroll
      for (int k = 0; k < STEP / 16; ++k) {
        if (from + k * 16 < rank) {
          multiply(sums, left, right, k);
        }
      }
    }
  }
  wait_for_groups<0>();
  __syncthreads();
#pragma unroll
  for (int n = 0; n < COLUMNS / 8; ++n) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      uint32_t *pair = pair_of(outs, n, half);
      *pair = pack(low(*pair) + sums[n][2 * half], high(*pair) + sums[n][2 * half + 1]);
    }
  }
  __syncwarp();
  const int lane = threadIdx.x % LANES;
#pragma unroll
  for (int first = 0; first < 16 * COLUMNS / CHUNK; first += LANES) {
    const int own = threadIdx.x / LANES * 16 + (first + lane) / (COLUMNS / CHUNK);
    const int chunk = (first + lane) % (COLUMNS / CHUNK);
    const int column = first_column + chunk * CHUNK;
    bool is_changed = false;
    for (int part = index; part < end; ++part) {
      is_changed = is_changed || touches(parts.at[part], column, CHUNK);
    }
    if (first_row + own < rows && is_changed) {
      put_chunk(out + static_cast<int64_t>(first_row + own) * stride + column, 0,
                *reinterpret_cast<const uint4 *>(outs + swizzled(own, chunk)));
    }
  }
}
