// Shared by the kernels: the shape of a packed stream, bf16, and the tensor cores' instructions as functions.
//
// All that only a GPU has is in this file. A C++ compiler other than nvcc gets it from `emulation.h` (tests/kernels), so that
// the same kernels run, slowly, on any machine.
#pragma once

#ifdef __CUDACC__

#include <cstdint>

#define SHARED_BYTES(name) extern __shared__ __align__(16) unsigned char name[]

// Two floats, rounded to nearest even, as a pair of bf16: `low` in the lower half.
static __device__ __forceinline__ uint32_t pack(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

static __device__ __forceinline__ float as_float(uint32_t bits) { return __uint_as_float(bits); }
static __device__ __forceinline__ uint32_t as_bits(float value) { return __float_as_uint(value); }

// 2 to the power of `x`, to within 2 units in the last place; 0 for minus infinity.
static __device__ __forceinline__ float power_of_two(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// 1 / x, to within one unit in the last place.
static __device__ __forceinline__ float reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

static __device__ __forceinline__ float from_lane_xor(float value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}

// Starts to copy 16 bytes from global to shared memory, or to fill them with zeros. `source` must be valid either way.
static __device__ __forceinline__ void copy_async(void *target, const void *source, bool is_there) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(target));
  const int bytes = is_there ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(source), "r"(bytes) : "memory");
}

// Closes a group of copies.
static __device__ __forceinline__ void end_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most `LEFT` of the latest groups are pending.
template <int LEFT> static __device__ __forceinline__ void wait_for_groups() {
  asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
}

// Four 8×8 matrices of bf16 from shared memory. Lane 8 m + r passes the address of row r of matrix m; lane l gets from each
// matrix the elements 2 (l % 4) and the next of row l / 4.
static __device__ __forceinline__ void load_matrices(uint32_t (&matrices)[4], const void *row) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
               : "r"(address)
               : "memory");
}

// The same, each matrix transposed.
static __device__ __forceinline__ void load_matrices_transposed(uint32_t (&matrices)[4], const void *row) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
               : "r"(address)
               : "memory");
}

// sum += a b, with `a` 16×16, `b` 16×8 and `sum` 16×8 distributed over the lanes of a warp as in PTX's mma.m16n8k16.
static __device__ __forceinline__ void multiply_add(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
               "{%0, %1, %2, %3};"
               : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

#if __CUDA_ARCH__ >= 890
// Two floats, rounded to nearest even, as a pair of e4m3, at most 448 in magnitude: `low` in the lower byte.
static __device__ __forceinline__ uint32_t convert_to_e4m3(float low, float high) {
  uint16_t pair;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(high), "f"(low));
  return pair;
}
#endif

#else
#include "emulation.h"
#endif

// Lanes of a warp.
constexpr int LANES = 32;

// bf16 values in one access of 16 bytes.
constexpr int CHUNK = 8;

// Most sequences in one launch.
constexpr int SEQUENCES_MAX = 64;

// How a packed stream is cut into sequences: rows `at[i]` to `at[i + 1]` are sequence i. Passed by value, without an upload.
// `Bounds` in ops/cuda.rs has the same layout.
struct Bounds {
  int count;
  int at[SEQUENCES_MAX + 1];
};

// The sequence of a row.
static __device__ __forceinline__ int sequence_of(const Bounds &bounds, int row) {
  int sequence = 0;
  while (sequence + 1 < bounds.count && row >= bounds.at[sequence + 1]) {
    ++sequence;
  }
  return sequence;
}

// The halves of a pair of bf16.
static __device__ __forceinline__ float low(uint32_t pair) { return as_float(pair << 16); }
static __device__ __forceinline__ float high(uint32_t pair) { return as_float(pair & 0xffff0000u); }

// Eight bf16 values of one 16-byte access, to floats and back.
static __device__ __forceinline__ void unpack(float (&values)[CHUNK], const uint4 &chunk) {
  const uint32_t pairs[4] = {chunk.x, chunk.y, chunk.z, chunk.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    values[2 * i] = low(pairs[i]);
    values[2 * i + 1] = high(pairs[i]);
  }
}

static __device__ __forceinline__ uint4 packed(const float (&values)[CHUNK]) {
  return make_uint4(pack(values[0], values[1]), pack(values[2], values[3]), pack(values[4], values[5]),
                    pack(values[6], values[7]));
}

static __device__ __forceinline__ uint4 chunk_at(const uint16_t *values, int64_t chunk) {
  return reinterpret_cast<const uint4 *>(values)[chunk];
}

static __device__ __forceinline__ void put_chunk(uint16_t *values, int64_t chunk, const uint4 &data) {
  reinterpret_cast<uint4 *>(values)[chunk] = data;
}

// x / (1 + e^(-2u)), u = sqrt(2 / pi) (x + 0.044715 x³): GELU by its tanh approximation.
static __device__ __forceinline__ float gelu_tanh_of(float x) {
  constexpr float TWICE_SQRT_2_OVER_PI_LOG2E = 2.3022082f;
  return x / (1.0f + power_of_two(-TWICE_SQRT_2_OVER_PI_LOG2E * (x + 0.044715f * x * x * x)));
}

// The sum over a warp, always in the same order. All lanes call it.
static __device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
  for (int mask = LANES / 2; mask > 0; mask /= 2) {
    value += from_lane_xor(value, mask);
  }
  return value;
}

// The sum over a block of `THREADS_OF_BLOCK` threads, always in the same order. All threads call it; `shared` has one value for
// each warp.
template <int THREADS_OF_BLOCK> static __device__ __forceinline__ float block_sum(float value, float *shared) {
  value = warp_sum(value);
  __syncthreads();
  if (threadIdx.x % LANES == 0) {
    shared[threadIdx.x / LANES] = value;
  }
  __syncthreads();
  float sum = 0.0f;
#pragma unroll
  for (int warp = 0; warp < THREADS_OF_BLOCK / LANES; ++warp) {
    sum += shared[warp];
  }
  return sum;
}

// A float in e4m3, rounded to nearest even. Values above 448 become 448, NaN becomes 0x7f.
static __device__ __forceinline__ uint32_t e4m3_of(float value) {
  const uint32_t bits = as_bits(value);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) {
    return 0x7f;
  }
  uint32_t code;
  if (magnitude < 0x3c800000u) {
    // Below 2^-6 the codes count steps of 2^-9: adding 2^14 rounds a float to these.
    code = as_bits(as_float(magnitude) + 16384.0f) - as_bits(16384.0f);
  } else {
    // Twenty bits are rounded off, and the exponent's bias is 7 instead of 127.
    code = ((magnitude + 0x7ffffu + (magnitude >> 20 & 1)) >> 20) - (120 << 3);
    code = code > 0x7e ? 0x7e : code;
  }
  return (bits >> 24 & 0x80) | code;
}

// Two floats in e4m3: `low` in the lower byte.
static __device__ __forceinline__ uint32_t pack_e4m3(float low, float high) {
#if defined(__CUDACC__) && !(__CUDA_ARCH__ >= 890)
  return e4m3_of(low) | e4m3_of(high) << 8;
#else
  return convert_to_e4m3(low, high);
#endif
}
