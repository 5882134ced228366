// Shared by the convolutions: how an image is cut into tiles, how its pixels are loaded into shared memory, and how a tile's
// outputs are written.
//
// A block computes 128 channels of a tile of 16×16 pixels. It takes some input channels at a time, which is a step: these
// channels of the tile and its border are in shared memory once, and each tap of the kernel reads them at another offset.
// The weights are loaded tap by tap: a round. The next round is loaded during the current one. No sum is split between
// blocks, so the order of additions, and the bits, are always the same.
//
// An image of doubled sides is never stored. Its pixels in even rows see the rows above and here, those in odd rows here and
// below, where the row that is seen twice has the sum of two weights; columns likewise. So each of the four kinds of pixels
// is a 2×2 convolution of the small image: 4 taps instead of 9.
#pragma once

#include "device.cuh"

// Pixels at each side of a block's tile. A warp's instruction takes 16 pixels of one row.
constexpr int TILE = 16;

struct Image {
  int height, width, channels;
};

// Successive rounds: tap by tap, step by step.
template <int TAPS> struct Round {
  int step, tap;

  __device__ __forceinline__ void advance() {
    if (++tap == TAPS) {
      tap = 0;
      ++step;
    }
  }
};

// A block's work. `KERNEL` is 3, or 2 for the four convolutions of an image of doubled sides.
template <int KERNEL> struct Task {
  static constexpr int SCALE = KERNEL == 3 ? 1 : 2;

  int first_output, kind, top, left;

  // Blocks that read the same pixels are next to each other.
  __device__ __forceinline__ Task(int block, const Image &image, int outputs, int outputs_of_block) {
    const int output_blocks = (outputs + outputs_of_block - 1) / outputs_of_block;
    const int tiles_across = (image.width + TILE - 1) / TILE;
    first_output = block % output_blocks * outputs_of_block;
    block /= output_blocks;
    kind = block % (SCALE * SCALE);
    block /= SCALE * SCALE;
    top = block / tiles_across * TILE;
    left = block % tiles_across * TILE;
  }

  // Where the first tap reads for the tile's first pixel: above and left of it, except in odd rows and columns of doubled sides.
  __device__ __forceinline__ int seen_top() const { return top - 1 + kind / 2; }
  __device__ __forceinline__ int seen_left() const { return left - 1 + kind % 2; }
};

// Position of a chunk of `STEP` channels in shared memory: any eight successive rows are in different banks.
template <int STEP> static __device__ __forceinline__ int swizzled(int row, int chunk) {
  static_assert(STEP == 32 || STEP == 64, "half of all banks, or all");
  return row * STEP + (STEP == 32 ? chunk ^ (row >> 1 & 3) : chunk ^ (row & 7)) * CHUNK;
}

// Starts to copy `STEP` channels of the `SIDE`×`SIDE` pixels from (top, left) on. Pixels outside are zeros.
template <int SIDE, int STEP, int THREADS>
static __device__ __forceinline__ void copy_pixels(uint16_t *target, const uint16_t *x, const Image &image, int top,
                                                   int left, int channel) {
  constexpr int CHUNKS = STEP / CHUNK;
  constexpr int PIXELS = SIDE * SIDE;
  constexpr int PIXELS_AT_ONCE = THREADS / CHUNKS;
  static_assert(PIXELS_AT_ONCE % 8 == 0, "a thread's chunks are below each other");
  const int own = threadIdx.x / CHUNKS;
  const int chunk = threadIdx.x % CHUNKS;
  const int from = channel + chunk * CHUNK;
  const bool has_channels = from < image.channels;
  target += swizzled<STEP>(own, chunk);
  const char *source = reinterpret_cast<const char *>(x + (has_channels ? from : 0));
  const int pixel_bytes = image.channels * static_cast<int>(sizeof(uint16_t));
  // The next pixel is found from the last one, without a division. Addresses shared by all turns would not fit in the
  // registers.
  int row = top + own / SIDE;
  int column = left + own % SIDE;
#pragma unroll 2
  for (int first = 0; first < PIXELS; first += PIXELS_AT_ONCE) {
    const bool is_there =
        has_channels && row >= 0 && row < image.height && column >= 0 && column < image.width;
    if (first + PIXELS_AT_ONCE <= PIXELS || first + own < PIXELS) {
      const int64_t at = static_cast<int64_t>(is_there ? row * image.width + column : 0) * pixel_bytes;
      copy_async(target + first * STEP, source + at, is_there);
    }
    row += PIXELS_AT_ONCE / SIDE;
    column += PIXELS_AT_ONCE % SIDE;
    if (column >= left + SIDE) {
      column -= SIDE;
      ++row;
    }
  }
}

// A warp's outputs of a tile: `WIDTH` channels from the block's `first_output` on, of some of the tile's rows.
struct Part {
  int first_row, row_step, first_output;
};

// Adds bias and residual, if there is one, to a warp's sums and writes them through `place` in shared memory, in complete
// chunks. `sum_at(m, n, half, i)` is that of row m, of pixel lane / 4 + 8 half, in channel 8 n + 2 (lane % 4) + i.
template <int KERNEL, int ROWS, int WIDTH, class Sum>
static __device__ __forceinline__ void write_outputs(const Sum &sum_at, const Task<KERNEL> &task, const Part &part,
                                                     const Image &image, int outputs, const uint16_t *biases,
                                                     const uint16_t *residual, uint16_t *out, uint16_t *place) {
  constexpr int SCALE = Task<KERNEL>::SCALE;
  constexpr int CHUNKS = WIDTH / CHUNK;
  const int lane = threadIdx.x % LANES;
  const auto in_place = [&](int pixel, int chunk) {
    return place + pixel * WIDTH + (chunk ^ (pixel % (CHUNKS < 8 ? CHUNKS : 8))) * CHUNK;
  };
  const auto for_each_chunk = [&](const auto &body) {
#pragma unroll 4
    for (int first = 0; first < ROWS * TILE * CHUNKS; first += LANES) {
      const int i = first + lane;
      const int pixel = i / CHUNKS;
      const int row = task.top + part.first_row + pixel / TILE * part.row_step;
      const int column = task.left + pixel % TILE;
      const int output = task.first_output + part.first_output + i % CHUNKS * CHUNK;
      const bool is_there = row < image.height && column < image.width && output < outputs;
      const int64_t out_row = row * SCALE + task.kind / 2;
      const int64_t at = out_row * (image.width * SCALE) + column * SCALE + task.kind % 2;
      body(in_place(pixel, i % CHUNKS), at * outputs + output, is_there);
    }
  };
  if (residual != nullptr) {
    for_each_chunk([&](uint16_t *chunk, int64_t at, bool is_there) { //
      copy_async(chunk, residual + (is_there ? at : 0), is_there);
    });
    end_group();
    wait_for_groups<0>();
    __syncwarp();
  }
#pragma unroll
  for (int n = 0; n < CHUNKS; ++n) {
    const uint32_t bias = *reinterpret_cast<const uint32_t *>(biases + part.first_output + n * CHUNK + lane % 4 * 2);
#pragma unroll
    for (int m = 0; m < ROWS; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int pixel = m * TILE + half * 8 + lane / 4;
        uint32_t *pair = reinterpret_cast<uint32_t *>(in_place(pixel, n) + lane % 4 * 2);
        float first = sum_at(m, n, half, 0) + low(bias);
        float second = sum_at(m, n, half, 1) + high(bias);
        if (residual != nullptr) {
          first += low(*pair);
          second += high(*pair);
        }
        *pair = pack(first, second);
      }
    }
  }
  __syncwarp();
  for_each_chunk([&](const uint16_t *chunk, int64_t at, bool is_there) {
    if (is_there) {
      put_chunk(out + at, 0, *reinterpret_cast<const uint4 *>(chunk));
    }
  });
}
