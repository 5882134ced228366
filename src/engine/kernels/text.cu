// Operations on each token of a prompt by itself, besides `rows.cu`: T5's normalization and gated activation. Both access 16
// bytes at a time, compute in f32, and round once. Widths are multiples of 8 values.
#include "device.cuh"

namespace {

constexpr int THREADS = 256;

} // namespace

// out = x scale / sqrt(mean(x²) + epsilon), row by row. Grid: rows.
extern "C" __global__ void __launch_bounds__(THREADS)
    rms_norm(const uint16_t *x, const uint16_t *scale, uint16_t *out, int width, float epsilon) {
  SHARED_BYTES(shared);
  const int64_t row = blockIdx.x;
  const int chunks = width / CHUNK;
  x += row * width;
  out += row * width;
  float values[CHUNK];
  float sum = 0.0f;
  for (int chunk = threadIdx.x; chunk < chunks; chunk += THREADS) {
    unpack(values, chunk_at(x, chunk));
#pragma unroll
    for (int i = 0; i < CHUNK; ++i) {
      sum += values[i] * values[i];
    }
  }
  const float inverse = rsqrtf(block_sum<THREADS>(sum, reinterpret_cast<float *>(shared)) / width + epsilon);
  for (int chunk = threadIdx.x; chunk < chunks; chunk += THREADS) {
    float scales[CHUNK];
    unpack(values, chunk_at(x, chunk));
    unpack(scales, chunk_at(scale, chunk));
#pragma unroll
    for (int i = 0; i < CHUNK; ++i) {
      values[i] *= inverse * scales[i];
    }
    put_chunk(out, chunk, packed(values));
  }
}

// For rows `[gate | up]`, `width` values each: out = gelu_tanh(gate) up. Grid: rows.
extern "C" __global__ void __launch_bounds__(THREADS) gated_gelu(const uint16_t *x, uint16_t *out, int width) {
  const int64_t row = blockIdx.x;
  const uint16_t *gate = x + row * 2 * width;
  const uint16_t *up = gate + width;
  out += row * width;
  for (int chunk = threadIdx.x; chunk < width / CHUNK; chunk += THREADS) {
    float gates[CHUNK];
    float values[CHUNK];
    unpack(gates, chunk_at(gate, chunk));
    unpack(values, chunk_at(up, chunk));
#pragma unroll
    for (int i = 0; i < CHUNK; ++i) {
      values[i] *= gelu_tanh_of(gates[i]);
    }
    put_chunk(out, chunk, packed(values));
  }
}
