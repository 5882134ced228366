// Quantizes matrices to fp8 (e4m3). A row's largest magnitude becomes 448, the largest number of e4m3, and the row is rounded
// to e4m3 on that scale: value = code × scale, one scale for each row. `engine/ops/quantize.rs` defines the exact bits.
//
// A row is read once, and held in registers between the search for its largest value and the rounding: 16 values, which
// become 16 bytes of codes, `HELD` times in each thread. Widths are multiples of 16, strides of 8.
#include "device.cuh"

namespace {

constexpr int THREADS = 256;

// Values of one 16-byte access of codes.
constexpr int VALUES = 16;

// The largest number in e4m3.
constexpr float LARGEST = 448.0f;

// A row whose values are all smaller than this, 448 × 2^-126, has the scale 1 and becomes zeros: the inverse of a subnormal
// scale may be infinite.
constexpr float NOTICEABLE = 0x1.cp-118f;

// The largest of all threads' values. `shared` has one value for each warp.
__device__ __forceinline__ uint32_t block_max(uint32_t value, uint32_t *shared) {
#pragma unroll
  for (int mask = LANES / 2; mask > 0; mask /= 2) {
    const uint32_t other = as_bits(from_lane_xor(as_float(value), mask));
    value = other > value ? other : value;
  }
  __syncthreads();
  if (threadIdx.x % LANES == 0) {
    shared[threadIdx.x / LANES] = value;
  }
  __syncthreads();
#pragma unroll
  for (int warp = 0; warp < THREADS / LANES; ++warp) {
    value = shared[warp] > value ? shared[warp] : value;
  }
  return value;
}

// The bits of magnitudes: they have the order of the numbers, with infinity and NaN above all.
__device__ __forceinline__ uint32_t largest_of(uint32_t largest, const float (&values)[VALUES]) {
#pragma unroll
  for (int i = 0; i < VALUES; ++i) {
    const uint32_t magnitude = as_bits(values[i]) & 0x7fffffffu;
    largest = magnitude > largest ? magnitude : largest;
  }
  return largest;
}

// The scale of a row whose largest magnitude has these bits. NaN, where a value of the row is not finite.
__device__ __forceinline__ float scale_of(uint32_t largest) {
  if (largest >= 0x7f800000u) {
    return as_float(0x7fc00000u);
  }
  return as_float(largest) < NOTICEABLE ? 1.0f : as_float(largest) / LARGEST;
}

__device__ __forceinline__ void put_codes(uint8_t *codes, int chunk, const float (&values)[VALUES], float inverse) {
  uint32_t words[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float *four = values + 4 * i;
    words[i] = pack_e4m3(four[0] * inverse, four[1] * inverse) | pack_e4m3(four[2] * inverse, four[3] * inverse) << 16;
  }
  reinterpret_cast<uint4 *>(codes)[chunk] = make_uint4(words[0], words[1], words[2], words[3]);
}

// Sixteen bf16 values, as floats.
__device__ __forceinline__ void read(float (&values)[VALUES], const uint16_t *row, int chunk) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float part[CHUNK];
    unpack(part, chunk_at(row, 2 * chunk + half));
#pragma unroll
    for (int i = 0; i < CHUNK; ++i) {
      values[half * CHUNK + i] = part[i];
    }
  }
}

// Quantizes a row, of which `source` returns sixteen values at a time.
template <int HELD, class Source>
__device__ __forceinline__ void quantize(const Source &source, uint8_t *codes, float *scales, int width, uint32_t *shared) {
  const int chunks = width / VALUES;
  float values[HELD][VALUES];
  uint32_t largest = 0;
#pragma unroll
  for (int held = 0; held < HELD; ++held) {
    const int chunk = threadIdx.x + held * THREADS;
    if (chunk < chunks) {
      source(values[held], chunk);
      largest = largest_of(largest, values[held]);
    }
  }
  const float scale = scale_of(block_max(largest, shared));
  const float inverse = 1.0f / scale;
#pragma unroll
  for (int held = 0; held < HELD; ++held) {
    const int chunk = threadIdx.x + held * THREADS;
    if (chunk < chunks) {
      put_codes(codes + static_cast<int64_t>(blockIdx.x) * width, chunk, values[held], inverse);
    }
  }
  if (threadIdx.x == 0) {
    scales[blockIdx.x] = scale;
  }
}

template <int HELD>
__device__ __forceinline__ void quantize_row(const uint16_t *x, uint8_t *codes, float *scales, int width, int stride) {
  SHARED_BYTES(shared);
  x += static_cast<int64_t>(blockIdx.x) * stride;
  const auto source = [&](float(&values)[VALUES], int chunk) { read(values, x, chunk); };
  quantize<HELD>(source, codes, scales, width, reinterpret_cast<uint32_t *>(shared));
}

} // namespace

// Rows of at most 4096 values. Grid: rows of x.
extern "C" __global__ void __launch_bounds__(THREADS)
    quantize_narrow(const uint16_t *x, uint8_t *codes, float *scales, int width, int stride) {
  quantize_row<1>(x, codes, scales, width, stride);
}

// Rows of at most 16384 values. Grid: rows of x.
extern "C" __global__ void __launch_bounds__(THREADS)
    quantize_wide(const uint16_t *x, uint8_t *codes, float *scales, int width, int stride) {
  quantize_row<4>(x, codes, scales, width, stride);
}

// [left | gelu_tanh(right + bias)], row by row, of at most 16384 values. `left_width` may be 0, `bias` null. Grid: rows.
extern "C" __global__ void __launch_bounds__(THREADS)
    quantize_beside_gelu_tanh(const uint16_t *left, const uint16_t *right, const uint16_t *bias, uint8_t *codes,
                              float *scales, int left_width, int right_width, int left_stride, int right_stride) {
  SHARED_BYTES(shared);
  const int64_t row = blockIdx.x;
  left += row * left_stride;
  right += row * right_stride;
  const int left_chunks = left_width / VALUES;
  const auto source = [&](float(&values)[VALUES], int chunk) {
    if (chunk < left_chunks) {
      read(values, left, chunk);
      return;
    }
    read(values, right, chunk - left_chunks);
    float biases[VALUES] = {};
    if (bias != nullptr) {
      read(biases, bias, chunk - left_chunks);
    }
#pragma unroll
    for (int i = 0; i < VALUES; ++i) {
      values[i] = gelu_tanh_of(values[i] + biases[i]);
    }
  };
  quantize<4>(source, codes, scales, left_width + right_width, reinterpret_cast<uint32_t *>(shared));
}

// LayerNorm(x) (1 + scale) + shift, as in rows.cu, of rows of at most 4096 values. Grid: rows of x.
extern "C" __global__ void __launch_bounds__(THREADS)
    quantize_modulated_layer_norm(const uint16_t *x, const uint16_t *shift, const uint16_t *scale, uint8_t *codes,
                                  float *scales, Bounds bounds, int width, int shift_stride, int scale_stride,
                                  float epsilon) {
  SHARED_BYTES(shared);
  float *sums = reinterpret_cast<float *>(shared);
  const int64_t sequence = sequence_of(bounds, blockIdx.x);
  x += static_cast<int64_t>(blockIdx.x) * width;
  shift += sequence * shift_stride;
  scale += sequence * scale_stride;
  const int own = threadIdx.x;
  const bool is_there = own < width / VALUES;
  float row[VALUES];
  float sum = 0.0f;
  if (is_there) {
    read(row, x, own);
#pragma unroll
    for (int i = 0; i < VALUES; ++i) {
      sum += row[i];
    }
  }
  const float mean = block_sum<THREADS>(sum, sums) / width;
  sum = 0.0f;
  if (is_there) {
#pragma unroll
    for (int i = 0; i < VALUES; ++i) {
      sum += (row[i] - mean) * (row[i] - mean);
    }
  }
  const float inverse = rsqrtf(block_sum<THREADS>(sum, sums) / width + epsilon);
  const auto source = [&](float(&values)[VALUES], int chunk) {
    float shifts[VALUES];
    read(values, scale, chunk);
    read(shifts, shift, chunk);
#pragma unroll
    for (int i = 0; i < VALUES; ++i) {
      values[i] = (row[i] - mean) * inverse * (1.0f + values[i]) + shifts[i];
    }
  };
  quantize<1>(source, codes, scales, width, reinterpret_cast<uint32_t *>(shared));
}
