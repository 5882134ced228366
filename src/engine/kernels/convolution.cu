// Convolutions of one picture, channels last, on the tensor cores of sm_80 and later, without spreading the input out:
// 3×3 with a border of zeros, and the same after the picture's sides have been doubled by repeating each pixel.
//
// A block makes 128 channels of a tile of 16×16 pixels. It goes over the input 32 channels at a time: these of the tile and
// of the pixels around it lie in shared memory once, and each tap of the kernel reads them there from another place on. The
// weights come tap by tap. What comes next is on its way while this is being worked on. No sum is split between blocks:
// always the same order, always the same bits.
//
// A picture of doubled sides is never made. Of its pixels those in even rows see the rows above and here, those in odd rows
// here and below, where the one that is seen twice has the sum of two weights; and so with the columns. So each of the four
// kinds of pixels is a 2×2 convolution of the small picture: 4 taps for 9.
#include "device.cuh"

namespace {

constexpr int WARPS = 8;
constexpr int THREADS = WARPS * LANES;
// Pixels at each side of a block's tile. A warp's product takes 16 pixels of one row.
constexpr int TILE = 16;
// Channels of the input at a time.
constexpr int STEP = 32;
constexpr int STEP_CHUNKS = STEP / CHUNK;
// Rounds whose weights are in shared memory or on their way there.
constexpr int STAGES = 4;

// Where a chunk of 32 channels stands in shared memory: of eight rows that follow each other, from any on, each is in banks
// of its own.
__device__ __forceinline__ int swizzled(int row, int chunk) { return row * STEP + (chunk ^ (row >> 1 & 3)) * CHUNK; }

// The same for a warp's outputs.
template <int WIDTH> __device__ __forceinline__ int swizzled_output(int row, int chunk) {
  constexpr int CHUNKS = WIDTH / CHUNK;
  return row * WIDTH + (chunk ^ (row % (CHUNKS < 8 ? CHUNKS : 8))) * CHUNK;
}

struct Picture {
  int height, width, channels;
};

// Starts to copy 32 channels of the `SIDE`×`SIDE` pixels from (top, left) on, which may lie outside: there are zeros.
template <int SIDE>
__device__ __forceinline__ void copy_pixels(uint16_t *target, const uint16_t *x, const Picture &picture, int top, int left,
                                            int channel) {
  constexpr int ALL = SIDE * SIDE * STEP_CHUNKS;
#pragma unroll
  for (int first = 0; first < ALL; first += THREADS) {
    const int i = first + threadIdx.x;
    const int pixel = i / STEP_CHUNKS;
    const int chunk = i % STEP_CHUNKS;
    const int row = top + pixel / SIDE;
    const int column = left + pixel % SIDE;
    const int from = channel + chunk * CHUNK;
    const bool is_there =
        row >= 0 && row < picture.height && column >= 0 && column < picture.width && from < picture.channels;
    const int64_t at = static_cast<int64_t>(row * picture.width + column) * picture.channels + from;
    if (first + THREADS <= ALL || i < ALL) {
      copy_async(target + swizzled(pixel, chunk), x + (is_there ? at : 0), is_there);
    }
  }
}

// `KERNEL` is 3, or 2 of the four convolutions that make a picture of doubled sides.
template <int KERNEL, int OUTPUTS>
__device__ __forceinline__ void convolve(const uint16_t *x, const uint16_t *weight, const uint16_t *bias,
                                         const uint16_t *residual, uint16_t *out, const Picture &picture, int outputs) {
  constexpr int TAPS = KERNEL * KERNEL;
  static_assert(TAPS >= STAGES, "pixels of the next step are waited for with the weights of STAGES rounds later");
  constexpr int SIDE = TILE + KERNEL - 1;
  constexpr int SCALE = KERNEL == 3 ? 1 : 2;
  constexpr int WARP_OUTPUTS = OUTPUTS < 64 ? OUTPUTS : 64;
  constexpr int WARPS_ACROSS = OUTPUTS / WARP_OUTPUTS;
  constexpr int WARP_ROWS = TILE * WARPS_ACROSS / WARPS;
  constexpr int PIXELS_SIZE = SIDE * SIDE * STEP;
  constexpr int WEIGHTS_SIZE = OUTPUTS * STEP;
  SHARED_BYTES(shared);
  uint16_t *pixels = reinterpret_cast<uint16_t *>(shared);
  uint16_t *weights = pixels + 2 * PIXELS_SIZE;
  uint16_t *biases = weights + STAGES * WEIGHTS_SIZE;
  const int warp = threadIdx.x / LANES;
  const int lane = threadIdx.x % LANES;

  // Blocks that read the same pixels follow each other.
  int block = blockIdx.x;
  const int output_blocks = (outputs + OUTPUTS - 1) / OUTPUTS;
  const int first_output = block % output_blocks * OUTPUTS;
  block /= output_blocks;
  const int kind = block % (SCALE * SCALE);
  block /= SCALE * SCALE;
  const int tiles_across = (picture.width + TILE - 1) / TILE;
  const int top = block / tiles_across * TILE;
  const int left = block % tiles_across * TILE;
  // The first tap is above and left of the pixel, but for the odd rows and columns of a doubled picture.
  const int seen_top = top - 1 + kind / 2;
  const int seen_left = left - 1 + kind % 2;

  const int row_size = TAPS * picture.channels;
  weight += (static_cast<int64_t>(kind) * outputs + first_output) * row_size;
  const auto copy_weights = [&](int stage, int tap, int channel) {
#pragma unroll
    for (int first = 0; first < OUTPUTS * STEP_CHUNKS; first += THREADS) {
      const int i = first + threadIdx.x;
      const int row = i / STEP_CHUNKS;
      const int from = channel + i % STEP_CHUNKS * CHUNK;
      const bool is_there = first_output + row < outputs && from < picture.channels;
      const int64_t at = static_cast<int64_t>(row) * row_size + tap * picture.channels + from;
      if (first + THREADS <= OUTPUTS * STEP_CHUNKS || i < OUTPUTS * STEP_CHUNKS) {
        copy_async(weights + stage * WEIGHTS_SIZE + swizzled(row, i % STEP_CHUNKS), weight + (is_there ? at : 0), is_there);
      }
    }
  };

  // A round: one tap of 32 channels.
  const int steps = (picture.channels + STEP - 1) / STEP;
  const int rounds = steps * TAPS;
  if (threadIdx.x < OUTPUTS / CHUNK) {
    const int from = first_output + threadIdx.x * CHUNK;
    copy_async(biases + threadIdx.x * CHUNK, bias + (from < outputs ? from : 0), from < outputs);
  }
  copy_pixels<SIDE>(pixels, x, picture, seen_top, seen_left, 0);
  copy_weights(0, 0, 0);
  end_group();
  if (steps > 1) {
    copy_pixels<SIDE>(pixels + PIXELS_SIZE, x, picture, seen_top, seen_left, STEP);
  }
#pragma unroll
  for (int round = 1; round < STAGES; ++round) {
    copy_weights(round, round, 0);
    end_group();
  }

  // Of each row of pixels of this warp, 16 pixels by 16 channels; and 16 outputs by 16 channels. Two of each: one is being
  // multiplied while the other comes.
  uint32_t a[2][WARP_ROWS][4];
  uint32_t b[2][WARP_OUTPUTS / 16][4];
  float sums[WARP_ROWS][WARP_OUTPUTS / 8][4] = {};
  const int own_row = warp / WARPS_ACROSS * WARP_ROWS;
  const int own_output = warp % WARPS_ACROSS * WARP_OUTPUTS;
  const auto load = [&](int half, const uint16_t *from_pixels, int first_pixel, const uint16_t *from_weights) {
#pragma unroll
    for (int m = 0; m < WARP_ROWS; ++m) {
      const int pixel = first_pixel + (own_row + m) * SIDE + lane % 16;
      load_matrices(a[half][m], from_pixels + swizzled(pixel, 2 * half + lane / 16));
    }
#pragma unroll
    for (int n = 0; n < WARP_OUTPUTS / 16; ++n) {
      const int row = own_output + n * 16 + lane / 16 * 8 + lane % 8;
      load_matrices(b[half][n], from_weights + swizzled(row, 2 * half + lane / 8 % 2));
    }
  };
  const auto multiply = [&](int half) {
#pragma unroll
    for (int m = 0; m < WARP_ROWS; ++m) {
#pragma unroll
      for (int n = 0; n < WARP_OUTPUTS / 8; ++n) {
        multiply_add(sums[m][n], a[half][m], b[half][n / 2][n % 2 * 2], b[half][n / 2][n % 2 * 2 + 1]);
      }
    }
  };

  wait_for_groups<STAGES - 1>();
  __syncthreads();
  load(0, pixels, 0, weights);
  int step = 0;
  int tap = 0;
  int next_tap = STAGES % TAPS;
  int next_channel = STAGES / TAPS * STEP;
  for (int round = 0; round < rounds; ++round) {
    const int stage = round % STAGES;
    load(1, pixels + step % 2 * PIXELS_SIZE, tap / KERNEL * SIDE + tap % KERNEL, weights + stage * WEIGHTS_SIZE);
    multiply(0);
    // Now the next round's weights are there, and its pixels, and all threads have read what this round needs.
    wait_for_groups<STAGES - 2>();
    __syncthreads();
    if (round + STAGES < rounds) {
      copy_weights(stage, next_tap, next_channel);
    }
    if (tap == TAPS - 1 && step + 2 < steps) {
      copy_pixels<SIDE>(pixels + step % 2 * PIXELS_SIZE, x, picture, seen_top, seen_left, (step + 2) * STEP);
    }
    end_group();
    if (++next_tap == TAPS) {
      next_tap = 0;
      next_channel += STEP;
    }
    if (++tap == TAPS) {
      tap = 0;
      ++step;
    }
    // After the last round it loads what nobody multiplies.
    load(0, pixels + step % 2 * PIXELS_SIZE, tap / KERNEL * SIDE + tap % KERNEL,
         weights + (round + 1) % STAGES * WEIGHTS_SIZE);
    multiply(1);
  }

  // By way of shared memory, so that whole chunks go out. Each warp has a place of its own, where all have read.
  __syncthreads();
  constexpr int OUTPUT_CHUNKS = WARP_OUTPUTS / CHUNK;
  constexpr int OUTPUTS_ALL = WARP_ROWS * TILE * OUTPUT_CHUNKS;
  uint16_t *place = pixels + warp * OUTPUTS_ALL * CHUNK;
  const auto for_each_chunk = [&](const auto &body) {
#pragma unroll 4
    for (int i = lane; i < OUTPUTS_ALL; i += LANES) {
      const int pixel = i / OUTPUT_CHUNKS;
      const int row = top + own_row + pixel / TILE;
      const int column = left + pixel % TILE;
      const int output = first_output + own_output + i % OUTPUT_CHUNKS * CHUNK;
      const bool is_there = row < picture.height && column < picture.width && output < outputs;
      const int64_t at = static_cast<int64_t>(row * SCALE + kind / 2) * (picture.width * SCALE) + column * SCALE + kind % 2;
      body(place + swizzled_output<WARP_OUTPUTS>(pixel, i % OUTPUT_CHUNKS), at * outputs + output, is_there);
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
  for (int n = 0; n < WARP_OUTPUTS / 8; ++n) {
    const uint32_t bias_pair = *reinterpret_cast<const uint32_t *>(biases + own_output + n * 8 + lane % 4 * 2);
#pragma unroll
    for (int m = 0; m < WARP_ROWS; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int pixel = m * TILE + half * 8 + lane / 4;
        uint32_t *pair = reinterpret_cast<uint32_t *>(place + swizzled_output<WARP_OUTPUTS>(pixel, n) + lane % 4 * 2);
        float first = sums[m][n][2 * half] + low(bias_pair);
        float second = sums[m][n][2 * half + 1] + high(bias_pair);
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

} // namespace

// `x [height, width, inputs]`, `weight [kinds, outputs, taps, inputs]`, `bias [outputs]`, and perhaps a `residual` like `out`,
// which is added -> `out [height, width, outputs]`, or of doubled sides; contiguous, bf16, on boundaries of 16 bytes, in and
// out channels multiples of 8.
// Grid: (ceil(height / 16) × ceil(width / 16) × kinds × ceil(outputs / OUTPUTS)); 256 threads; shared memory: twice 64 bytes
// × (15 + kernel)², four times 64 bytes × OUTPUTS, and 2 bytes × OUTPUTS.
#define CONVOLUTION(name, kernel, outputs_of_block)                                                                     \
  extern "C" __global__ void __launch_bounds__(THREADS, 1)                                                              \
      name(const uint16_t *x, const uint16_t *weight, const uint16_t *bias, const uint16_t *residual, uint16_t *out,    \
           int height, int width, int inputs, int outputs) {                                                            \
    convolve<kernel, outputs_of_block>(x, weight, bias, residual, out, {height, width, inputs}, outputs);               \
  }

CONVOLUTION(convolution, 3, 128)
CONVOLUTION(convolution_narrow, 3, 16)
CONVOLUTION(convolution_doubled, 2, 128)
