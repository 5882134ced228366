// Operations on each token by itself: normalization with modulation, rotation, gates, activations. All access 16 bytes at a
// time, compute in f32, and round once. Widths, strides and starts are multiples of 8 values. A matrix product comes with the
// bias that is still to be added, or null: the kernel reads the product anyway.
#include "device.cuh"

namespace {

constexpr int THREADS = 256;

// A chunk of a matrix product with its bias, in f32.
__device__ __forceinline__ void unpack_biased(float (&values)[CHUNK], const uint4 &data, const uint16_t *bias, int chunk) {
  unpack(values, data);
  if (bias != nullptr) {
    float biases[CHUNK];
    unpack(biases, chunk_at(bias, chunk));
#pragma unroll
    for (int i = 0; i < CHUNK; ++i) {
      values[i] += biases[i];
    }
  }
}

} // namespace

// out = LayerNorm(x) (1 + scale) + shift, with the scale and shift of the row's sequence, `stride` values apart.
// Grid: rows of x.
extern "C" __global__ void __launch_bounds__(THREADS)
    modulated_layer_norm(const uint16_t *x, const uint16_t *shift, const uint16_t *scale, uint16_t *out, Bounds bounds,
                         int width, int shift_stride, int scale_stride, float epsilon) {
  SHARED_BYTES(shared);
  float *sums = reinterpret_cast<float *>(shared);
  const int64_t row = blockIdx.x;
  const int64_t sequence = sequence_of(bounds, blockIdx.x);
  const int chunks = width / CHUNK;
  x += row * width;
  out += row * width;
  shift += sequence * shift_stride;
  scale += sequence * scale_stride;
  float values[CHUNK];
  float sum = 0.0f;
  for (int chunk = threadIdx.x; chunk < chunks; chunk += THREADS) {
    unpack(values, chunk_at(x, chunk));
#pragma unroll
    for (int i = 0; i < CHUNK; ++i) {
      sum += values[i];
    }
  }
  const float mean = block_sum<THREADS>(sum, sums) / width;
  // The second read of the row hits the cache.
  sum = 0.0f;
  for (int chunk = threadIdx.x; chunk < chunks; chunk += THREADS) {
    unpack(values, chunk_at(x, chunk));
#pragma unroll
    for (int i = 0; i < CHUNK; ++i) {
      sum += (values[i] - mean) * (values[i] - mean);
    }
  }
  const float inverse = rsqrtf(block_sum<THREADS>(sum, sums) / width + epsilon);
  for (int chunk = threadIdx.x; chunk < chunks; chunk += THREADS) {
    float scales[CHUNK];
    float shifts[CHUNK];
    unpack(values, chunk_at(x, chunk));
    unpack(scales, chunk_at(scale, chunk));
    unpack(shifts, chunk_at(shift, chunk));
#pragma unroll
    for (int i = 0; i < CHUNK; ++i) {
      values[i] = (values[i] - mean) * inverse * (1.0f + scales[i]) + shifts[i];
    }
    put_chunk(out, chunk, packed(values));
  }
}

// out = x + gate (y + bias), with the gate of the row's sequence. Grid: rows of x.
extern "C" __global__ void __launch_bounds__(THREADS)
    gated_residual(const uint16_t *x, const uint16_t *y, const uint16_t *bias, const uint16_t *gate, uint16_t *out,
                   Bounds bounds, int width, int gate_stride) {
  const int64_t row = blockIdx.x;
  gate += static_cast<int64_t>(sequence_of(bounds, blockIdx.x)) * gate_stride;
  for (int chunk = threadIdx.x; chunk < width / CHUNK; chunk += THREADS) {
    float values[CHUNK];
    float added[CHUNK];
    float gates[CHUNK];
    unpack(values, chunk_at(x + row * width, chunk));
    unpack_biased(added, chunk_at(y + row * width, chunk), bias, chunk);
    unpack(gates, chunk_at(gate, chunk));
#pragma unroll
    for (int i = 0; i < CHUNK; ++i) {
      values[i] += gates[i] * added[i];
    }
    put_chunk(out + row * width, chunk, packed(values));
  }
}

// RMSNorm of every query's and key's head, after adding the bias, with one scale for all queries and one for all keys, and
// rotation by the row's angles; values are copied. `cos` and `sin`, `[rows, head width / 2]` in f32, may both be null: no
// rotation. Sequence i goes to the rows of `out` from `targets.at[i]` on. A head's width is 8 times a power of two, at most
// 256. Grid: rows.
extern "C" __global__ void __launch_bounds__(THREADS)
    normalize_and_rotate(const uint16_t *qkv, const uint16_t *bias, const uint16_t *query_scale,
                         const uint16_t *key_scale, const float *cos, const float *sin, uint16_t *out, Bounds sources,
                         Bounds targets, int heads, int head_width, int stride, float epsilon) {
  const int64_t row = blockIdx.x;
  const int sequence = sequence_of(sources, blockIdx.x);
  const int64_t target = row - sources.at[sequence] + targets.at[sequence];
  // Neighboring lanes share a head.
  const int head_chunks = head_width / CHUNK;
  const int part = heads * head_chunks;
  qkv += row * stride;
  out += target * 3 * heads * head_width;
  for (int start = 0; start < 3 * part; start += THREADS) {
    // No lane returns early: all take part in the sum.
    const int chunk = start + threadIdx.x;
    const bool is_there = chunk < 3 * part;
    const uint4 data = is_there ? chunk_at(qkv, chunk) : make_uint4(0, 0, 0, 0);
    float values[CHUNK];
    unpack_biased(values, data, is_there ? bias : nullptr, chunk);
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < CHUNK; ++i) {
      sum += values[i] * values[i];
    }
    for (int mask = head_chunks / 2; mask > 0; mask /= 2) {
      sum += from_lane_xor(sum, mask);
    }
    if (!is_there) {
      continue;
    }
    if (chunk >= 2 * part) {
      put_chunk(out, chunk, packed(values));
      continue;
    }
    const int in_head = chunk % head_chunks;
    float scales[CHUNK];
    unpack(scales, chunk_at(chunk < part ? query_scale : key_scale, in_head));
    const float inverse = rsqrtf(sum / head_width + epsilon);
#pragma unroll
    for (int i = 0; i < CHUNK; ++i) {
      values[i] *= inverse * scales[i];
    }
    if (cos != nullptr) {
      // Four angles for each chunk, of 4 bytes each.
      const int64_t angle = row * head_chunks + in_head;
      const float4 c = reinterpret_cast<const float4 *>(cos)[angle];
      const float4 s = reinterpret_cast<const float4 *>(sin)[angle];
      const float cosines[4] = {c.x, c.y, c.z, c.w};
      const float sines[4] = {s.x, s.y, s.z, s.w};
#pragma unroll
      for (int pair = 0; pair < 4; ++pair) {
        const float a = values[2 * pair];
        const float b = values[2 * pair + 1];
        values[2 * pair] = a * cosines[pair] - b * sines[pair];
        values[2 * pair + 1] = a * sines[pair] + b * cosines[pair];
      }
    }
    put_chunk(out, chunk, packed(values));
  }
}

// out = gelu_tanh(x + bias), row by row; the rows of `x` are `stride` values apart. Grid: rows.
extern "C" __global__ void __launch_bounds__(THREADS)
    gelu_tanh(const uint16_t *x, const uint16_t *bias, uint16_t *out, int width, int stride) {
  const int64_t row = blockIdx.x;
  x += row * stride;
  out += row * width;
  for (int chunk = threadIdx.x; chunk < width / CHUNK; chunk += THREADS) {
    float values[CHUNK];
    unpack_biased(values, chunk_at(x, chunk), bias, chunk);
#pragma unroll
    for (int i = 0; i < CHUNK; ++i) {
      values[i] = gelu_tanh_of(values[i]);
    }
    put_chunk(out, chunk, packed(values));
  }
}
