// The convolutions of convolution.cu by the matrix instructions of sm_90a: two warpgroups, each of which computes 128
// channels of eight rows of a tile. The pixels of a round go through registers, as each tap needs others; the weights are
// read from shared memory. The next round's pixels are loaded while this round's instructions run.
#include "convolution.cuh"
#include "warpgroup.cuh"

// Other devices do not have these instructions; for them the kernels are empty.
#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || !defined(__CUDACC__)

namespace {

constexpr int GROUPS = 2;
constexpr int THREADS = GROUPS * WARPGROUP;
// Channels of a block, and input channels of a step.
constexpr int OUTPUTS = 128;
constexpr int STEP = PANEL;
constexpr int STEP_CHUNKS = STEP / CHUNK;
// Rounds whose weights are in shared memory or pending.
constexpr int STAGES = 4;
constexpr int WEIGHTS_SIZE = OUTPUTS * STEP;
// Terms of the sum in one instruction; instructions of a round, in sequence and in parallel: each takes four rows of the
// tile, one for each warp.
constexpr int DEPTH = 16;
constexpr int DEEP = STEP / DEPTH;
constexpr int WIDE = TILE / GROUPS / 4;

template <int KERNEL>
__device__ __forceinline__ void convolve(const uint16_t *x, const uint16_t *weight, const uint16_t *bias,
                                         const uint16_t *residual, uint16_t *out, const Image &image, int outputs) {
  constexpr int TAPS = KERNEL * KERNEL;
  static_assert(TAPS >= STAGES - 2, "pixels of the next step are waited for with the weights of STAGES - 1 rounds later");
  constexpr int SIDE = TILE + KERNEL - 1;
  constexpr int PIXELS_SIZE = SIDE * SIDE * STEP;
  static_assert(TILE * TILE * OUTPUTS <= 2 * PIXELS_SIZE, "outputs pass through where the pixels were");
  SHARED_BYTES(shared);
  const uint32_t unaligned = shared_address(shared);
  const uint32_t skipped = (TILE_ALIGNMENT - unaligned % TILE_ALIGNMENT) % TILE_ALIGNMENT;
  uint16_t *weights = reinterpret_cast<uint16_t *>(shared + skipped);
  uint16_t *pixels = weights + STAGES * WEIGHTS_SIZE;
  uint16_t *biases = pixels + 2 * PIXELS_SIZE;
  const int warp = same_in_warp(threadIdx.x / LANES);
  const int lane = threadIdx.x % LANES;
  const Task<KERNEL> task(blockIdx.x, image, outputs, OUTPUTS);

  const auto copy_step = [&](int step) {
    copy_pixels<SIDE, STEP, THREADS>(pixels + step % 2 * PIXELS_SIZE, x, image, task.seen_top(), task.seen_left(),
                                     step * STEP);
  };
  const int row_size = TAPS * image.channels;
  weight += (static_cast<int64_t>(task.kind) * outputs + task.first_output) * row_size;
  const auto copy_weights = [&](int stage, const Round<TAPS> &round) {
    const int chunk = threadIdx.x % STEP_CHUNKS;
    const int from = round.step * STEP + chunk * CHUNK;
#pragma unroll
    for (int first = 0; first < OUTPUTS; first += THREADS / STEP_CHUNKS) {
      const int row = first + threadIdx.x / STEP_CHUNKS;
      const bool is_there = task.first_output + row < outputs && from < image.channels;
      const int64_t at = static_cast<int64_t>(row) * row_size + round.tap * image.channels + from;
      copy_async(weights + stage * WEIGHTS_SIZE + in_panels<OUTPUTS>(row, chunk), weight + (is_there ? at : 0), is_there);
    }
  };
  const auto weights_of = [&](int stage) { return matrix_at(unaligned + skipped + stage * WEIGHTS_SIZE * 2, WITHIN_PANEL); };

  const Part part = {warp / 4 * (TILE / GROUPS) + warp % 4, 4, 0};
  const auto load = [&](uint32_t(&left)[DEEP * WIDE][4], const Round<TAPS> &round) {
    const uint16_t *from = pixels + round.step % 2 * PIXELS_SIZE;
#pragma unroll
    for (int m = 0; m < WIDE; ++m) {
      const int row = part.first_row + m * part.row_step + round.tap / KERNEL;
      const int pixel = row * SIDE + round.tap % KERNEL + lane % 16;
#pragma unroll
      for (int k = 0; k < DEEP; ++k) {
        load_matrices(left[k * WIDE + m], from + swizzled<STEP>(pixel, 2 * k + lane / 16));
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
  for (int stage = 0; stage < STAGES - 1; ++stage) {
    if (stage < 2 && stage < steps) {
      copy_step(stage);
    }
    copy_weights(stage, next);
    end_group();
    next.advance();
  }

  float sums[WIDE][64] = {};
  uint32_t left[2][DEEP * WIDE][4];
  Round<TAPS> round = {0, 0};
  wait_for_groups<STAGES - 2>();
  publish_copies();
  __syncthreads();
  load(left[0], round);
  order_registers(sums[0], left[0]);
  order_registers(sums[1], left[0]);
  const auto turn = [&](int i, uint32_t(&now)[DEEP * WIDE][4], uint32_t(&then)[DEEP * WIDE][4]) {
    order_registers(now);
    const uint64_t own_weights = weights_of(i % STAGES);
#pragma unroll
    for (int k = 0; k < DEEP; ++k) {
#pragma unroll
      for (int m = 0; m < WIDE; ++m) {
        multiply_add_rows_by_rows(sums[m], now[k * WIDE + m], further(own_weights, k * DEPTH * 2));
      }
    }
    end_products();
    // The previous round is done, and the next one's weights and pixels are loaded.
    wait_for_products<1>(then);
    wait_for_groups<STAGES - 3>();
    publish_copies();
    // After this that holds for all threads, and all have loaded this round's pixels into registers.
    __syncthreads();
    if (i + STAGES - 1 < rounds) {
      copy_weights((i + STAGES - 1) % STAGES, next);
      next.advance();
    }
    if (round.tap == TAPS - 1 && round.step + 2 < steps) {
      copy_step(round.step + 2);
    }
    end_group();
    // After the last round this loads values that are not used.
    round.advance();
    load(then, round);
  };
  for (int i = 0; i < rounds; i += 2) {
    turn(i, left[0], left[1]);
    if (i + 1 < rounds) {
      turn(i + 1, left[1], left[0]);
    }
  }
  wait_for_products<0>(sums[0], left[0]);
  wait_for_products<0>(sums[1], left[1]);

  // Each warp has its own part, in memory that all threads have read.
  __syncthreads();
  const auto sum_at = [&](int m, int n, int half, int i) { return sums[m][4 * n + 2 * half + i]; };
  write_outputs<KERNEL, WIDE, OUTPUTS>(sum_at, task, part, image, outputs, biases, residual, out,
                                       pixels + warp * WIDE * TILE * OUTPUTS);
}

} // namespace

// Operands as in convolution.cu. Shared memory: four times 16 KiB, twice 128 bytes × (15 + kernel)², 256 bytes, and the
// alignment to 1024.
#define CONVOLUTION(name, kernel)                                                                                       \
  extern "C" __global__ void __launch_bounds__(THREADS, 1)                                                              \
      name(const uint16_t *x, const uint16_t *weight, const uint16_t *bias, const uint16_t *residual, uint16_t *out,    \
           int height, int width, int inputs, int outputs) {                                                            \
    convolve<kernel>(x, weight, bias, residual, out, {height, width, inputs}, outputs);                                 \
  }

CONVOLUTION(convolution_hopper, 3)
CONVOLUTION(convolution_hopper_doubled, 2)

#endif
