// Convolutions of one image, channels last, on the tensor cores of sm_80 and later, without unrolling the input: 3×3 with a
// border of zeros, and the same of an image of doubled sides, with each pixel repeated. convolution.cuh describes the
// algorithm.
#include "convolution.cuh"

namespace {

constexpr int WARPS = 8;
constexpr int THREADS = WARPS * LANES;
// Input channels of a step.
constexpr int STEP = 32;
constexpr int STEP_CHUNKS = STEP / CHUNK;
// Rounds whose weights are in shared memory or pending.
constexpr int STAGES = 4;

template <int KERNEL, int OUTPUTS>
__device__ __forceinline__ void convolve(const uint16_t *x, const uint16_t *weight, const uint16_t *bias,
                                         const uint16_t *residual, uint16_t *out, const Image &image, int outputs) {
  constexpr int TAPS = KERNEL * KERNEL;
  static_assert(TAPS >= STAGES, "pixels of the next step are waited for with the weights of STAGES rounds later");
  constexpr int SIDE = TILE + KERNEL - 1;
  constexpr int WARP_OUTPUTS = OUTPUTS < 64 ? OUTPUTS : 64;
  constexpr int WARPS_ACROSS = OUTPUTS / WARP_OUTPUTS;
  constexpr int WARP_ROWS = TILE * WARPS_ACROSS / WARPS;
  constexpr int PIXELS_SIZE = SIDE * SIDE * STEP;
  constexpr int WEIGHTS_SIZE = OUTPUTS * STEP;
  static_assert(TILE * TILE * OUTPUTS <= 2 * PIXELS_SIZE + STAGES * WEIGHTS_SIZE, "outputs pass through shared memory");
  SHARED_BYTES(shared);
  uint16_t *pixels = reinterpret_cast<uint16_t *>(shared);
  uint16_t *weights = pixels + 2 * PIXELS_SIZE;
  uint16_t *biases = weights + STAGES * WEIGHTS_SIZE;
  const int warp = threadIdx.x / LANES;
  const int lane = threadIdx.x % LANES;
  const Task<KERNEL> task(blockIdx.x, image, outputs, OUTPUTS);

  const auto copy_step = [&](int step) {
    copy_pixels<SIDE, STEP, THREADS>(pixels + step % 2 * PIXELS_SIZE, x, image, task.seen_top(), task.seen_left(),
                                     step * STEP);
  };
  const int row_size = TAPS * image.channels;
  weight += (static_cast<int64_t>(task.kind) * outputs + task.first_output) * row_size;
  const auto copy_weights = [&](int stage, const Round<TAPS> &round) {
#pragma unroll
    for (int first = 0; first < OUTPUTS * STEP_CHUNKS; first += THREADS) {
      const int i = first + threadIdx.x;
      const int row = i / STEP_CHUNKS;
      const int from = round.step * STEP + i % STEP_CHUNKS * CHUNK;
      const bool is_there = task.first_output + row < outputs && from < image.channels;
      const int64_t at = static_cast<int64_t>(row) * row_size + round.tap * image.channels + from;
      if (first + THREADS <= OUTPUTS * STEP_CHUNKS || i < OUTPUTS * STEP_CHUNKS) {
        copy_async(weights + stage * WEIGHTS_SIZE + swizzled<STEP>(row, i % STEP_CHUNKS), weight + (is_there ? at : 0),
                   is_there);
      }
    }
  };

  const int steps = (image.channels + STEP - 1) / STEP;
  const int rounds = steps * TAPS;
  if (threadIdx.x < OUTPUTS / CHUNK) {
    const int from = task.first_output + threadIdx.x * CHUNK;
    copy_async(biases + threadIdx.x * CHUNK, bias + (from < outputs ? from : 0), from < outputs);
  }
  Round<TAPS> next = {0, 0};
#pragma unroll
  for (int stage = 0; stage < STAGES; ++stage) {
    if (stage < 2 && stage < steps) {
      copy_step(stage);
    }
    copy_weights(stage, next);
    end_group();
    next.advance();
  }

  // For each row of pixels of this warp, 16 pixels by 16 channels; and 16 outputs by 16 channels. Two of each: one is
  // multiplied while the other is loaded.
  uint32_t a[2][WARP_ROWS][4];
  uint32_t b[2][WARP_OUTPUTS / 16][4];
  float sums[WARP_ROWS][WARP_OUTPUTS / 8][4] = {};
  const Part part = {warp / WARPS_ACROSS * WARP_ROWS, 1, warp % WARPS_ACROSS * WARP_OUTPUTS};
  const auto load = [&](int half, const Round<TAPS> &round, int stage) {
    const uint16_t *from_pixels = pixels + round.step % 2 * PIXELS_SIZE;
    const uint16_t *from_weights = weights + stage * WEIGHTS_SIZE;
#pragma unroll
    for (int m = 0; m < WARP_ROWS; ++m) {
      const int pixel = (part.first_row + m + round.tap / KERNEL) * SIDE + round.tap % KERNEL + lane % 16;
      load_matrices(a[half][m], from_pixels + swizzled<STEP>(pixel, 2 * half + lane / 16));
    }
#pragma unroll
    for (int n = 0; n < WARP_OUTPUTS / 16; ++n) {
      const int row = part.first_output + n * 16 + lane / 16 * 8 + lane % 8;
      load_matrices(b[half][n], from_weights + swizzled<STEP>(row, 2 * half + lane / 8 % 2));
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
  Round<TAPS> round = {0, 0};
  load(0, round, 0);
  for (int i = 0; i < rounds; ++i) {
    load(1, round, i % STAGES);
    multiply(0);
    // Now the next round's weights and pixels are loaded, and all threads have read this round's.
    wait_for_groups<STAGES - 2>();
    __syncthreads();
    if (i + STAGES < rounds) {
      copy_weights(i % STAGES, next);
      next.advance();
    }
    if (round.tap == TAPS - 1 && round.step + 2 < steps) {
      copy_step(round.step + 2);
    }
    end_group();
    // After the last round this loads values that are not used.
    round.advance();
    load(0, round, (i + 1) % STAGES);
    multiply(1);
  }

  // Each warp has its own part, in memory that all threads have read.
  __syncthreads();
  const auto sum_at = [&](int m, int n, int half, int i) { return sums[m][n][2 * half + i]; };
  write_outputs<KERNEL, WARP_ROWS, WARP_OUTPUTS>(sum_at, task, part, image, outputs, biases, residual, out,
                                                 pixels + warp * WARP_ROWS * TILE * WARP_OUTPUTS);
}

} // namespace

// `x [height, width, inputs]`, `weight [kinds, outputs, taps, inputs]`, `bias [outputs]`, and optionally a `residual` like
// `out`, which is added -> `out [height, width, outputs]`, or of doubled sides; contiguous, bf16, aligned to 16 bytes, input
// and output channels multiples of 8.
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
