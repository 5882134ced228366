// Expands weights from the formats of quantized files to bf16: the bits of `engine/blocks`, rounded once.
//
// A thread writes eight numbers, and reads their codes byte by byte: blocks of 18 or 210 bytes begin anywhere. Neighbors read the
// same lines, so that the memory sees each once.
#include "device.cuh"

namespace {

constexpr int THREADS = 256;

// Products and sums as `engine/blocks` computes them, each rounded: the compiler must not fuse them.
#ifdef __CUDACC__
__device__ __forceinline__ float times(float a, float b) { return __fmul_rn(a, b); }
__device__ __forceinline__ float plus(float a, float b) { return __fadd_rn(a, b); }
#else
inline float times(float a, float b) { return a * b; }
inline float plus(float a, float b) { return a + b; }
#endif

__device__ __forceinline__ float f16_of(uint32_t bits) {
  const uint32_t sign = (bits & 0x8000u) << 16;
  const uint32_t magnitude = bits & 0x7fffu;
  if (magnitude >= 0x7c00u) {
    return as_float(sign | magnitude << 13 | 0x7f800000u | (magnitude > 0x7c00u ? 0x400000u : 0u));
  }
  if (magnitude < 0x400u) {
    // Below the smallest exponent: multiples of 2^-24.
    return as_float(sign | as_bits(static_cast<float>(magnitude) * 0x1p-24f));
  }
  return as_float(sign | ((magnitude << 13) + (112u << 23)));
}

__device__ __forceinline__ float e4m3_to_float(uint32_t bits) {
  const uint32_t sign = (bits & 0x80u) << 24;
  const uint32_t magnitude = bits & 0x7fu;
  if (magnitude == 0x7fu) {
    return as_float(sign | 0x7fc00000u);
  }
  if (magnitude < 8u) {
    // Below the smallest exponent: multiples of 2^-9.
    return as_float(sign | as_bits(static_cast<float>(magnitude) * 0x1p-9f));
  }
  return as_float(sign | ((magnitude << 20) + (120u << 23)));
}

__device__ __forceinline__ float half_at(const uint8_t *bytes) { return f16_of(bytes[0] | bytes[1] << 8); }
__device__ __forceinline__ float number(uint32_t code) { return static_cast<float>(code); }
__device__ __forceinline__ float number(int code) { return static_cast<float>(code); }

// A format: `NUMBERS` in blocks of `BYTES`, and eight of them, from number `at` of a block on. `scale` multiplies those of plain
// types, and is 1 for blocks.

struct F32 {
  static constexpr int NUMBERS = 1, BYTES = 4;
  static __device__ __forceinline__ void values(float (&out)[CHUNK], const uint8_t *codes, int, float scale) {
#pragma unroll
    for (int i = 0; i < CHUNK; ++i) {
      const uint8_t *code = codes + 4 * i;
      const uint32_t bits = code[0] | code[1] << 8 | code[2] << 16 | static_cast<uint32_t>(code[3]) << 24;
      out[i] = times(as_float(bits), scale);
    }
  }
};

struct F16 {
  static constexpr int NUMBERS = 1, BYTES = 2;
  static __device__ __forceinline__ void values(float (&out)[CHUNK], const uint8_t *codes, int, float scale) {
#pragma unroll
    for (int i = 0; i < CHUNK; ++i) {
      out[i] = times(half_at(codes + 2 * i), scale);
    }
  }
};

struct Bf16 {
  static constexpr int NUMBERS = 1, BYTES = 2;
  static __device__ __forceinline__ void values(float (&out)[CHUNK], const uint8_t *codes, int, float scale) {
#pragma unroll
    for (int i = 0; i < CHUNK; ++i) {
      const uint32_t bits = codes[2 * i] | codes[2 * i + 1] << 8;
      out[i] = times(as_float(bits << 16), scale);
    }
  }
};

struct E4m3 {
  static constexpr int NUMBERS = 1, BYTES = 1;
  static __device__ __forceinline__ void values(float (&out)[CHUNK], const uint8_t *codes, int, float scale) {
#pragma unroll
    for (int i = 0; i < CHUNK; ++i) {
      out[i] = times(e4m3_to_float(codes[i]), scale);
    }
  }
};

// The upper half of an f16.
struct E5m2 {
  static constexpr int NUMBERS = 1, BYTES = 1;
  static __device__ __forceinline__ void values(float (&out)[CHUNK], const uint8_t *codes, int, float scale) {
#pragma unroll
    for (int i = 0; i < CHUNK; ++i) {
      out[i] = times(f16_of(codes[i] << 8), scale);
    }
  }
};

// The older types of GGML: the first half of 32 numbers has the low four bits of the bytes, the second the high ones.
__device__ __forceinline__ uint32_t nibble(const uint8_t *codes, int at) { return codes[at % 16] >> (at / 16 * 4) & 0xfu; }

__device__ __forceinline__ uint32_t fifth(const uint8_t *bits, int at) { return (bits[at / 8] >> (at % 8) & 1u) << 4; }

struct Q4_0 {
  static constexpr int NUMBERS = 32, BYTES = 18;
  static __device__ __forceinline__ void values(float (&out)[CHUNK], const uint8_t *block, int at, float) {
    const float scale = half_at(block);
#pragma unroll
    for (int i = 0; i < CHUNK; ++i) {
      out[i] = times(scale, number(nibble(block + 2, at + i)) - 8.0f);
    }
  }
};

struct Q4_1 {
  static constexpr int NUMBERS = 32, BYTES = 20;
  static __device__ __forceinline__ void values(float (&out)[CHUNK], const uint8_t *block, int at, float) {
    const float scale = half_at(block), minimum = half_at(block + 2);
#pragma unroll
    for (int i = 0; i < CHUNK; ++i) {
      out[i] = plus(times(scale, number(nibble(block + 4, at + i))), minimum);
    }
  }
};

struct Q5_0 {
  static constexpr int NUMBERS = 32, BYTES = 22;
  static __device__ __forceinline__ void values(float (&out)[CHUNK], const uint8_t *block, int at, float) {
    const float scale = half_at(block);
#pragma unroll
    for (int i = 0; i < CHUNK; ++i) {
      const uint32_t code = nibble(block + 6, at + i) | fifth(block + 2, at + i);
      out[i] = times(scale, number(code) - 16.0f);
    }
  }
};

struct Q5_1 {
  static constexpr int NUMBERS = 32, BYTES = 24;
  static __device__ __forceinline__ void values(float (&out)[CHUNK], const uint8_t *block, int at, float) {
    const float scale = half_at(block), minimum = half_at(block + 2);
#pragma unroll
    for (int i = 0; i < CHUNK; ++i) {
      const uint32_t code = nibble(block + 8, at + i) | fifth(block + 4, at + i);
      out[i] = plus(times(scale, number(code)), minimum);
    }
  }
};

struct Q8_0 {
  static constexpr int NUMBERS = 32, BYTES = 34;
  static __device__ __forceinline__ void values(float (&out)[CHUNK], const uint8_t *block, int at, float) {
    const float scale = half_at(block);
#pragma unroll
    for (int i = 0; i < CHUNK; ++i) {
      out[i] = times(scale, number(static_cast<int>(static_cast<int8_t>(block[2 + at + i]))));
    }
  }
};

// The K-quants: 256 numbers in sub-blocks with a scale each.

// Where the two bits of a number are, of 256 whose sub-blocks have 16: each 32 bytes have those of 128 numbers, of the first 32
// in the lowest bits.
__device__ __forceinline__ int two_bits_at(int at) { return at / 128 * 32 + at % 32; }
__device__ __forceinline__ int two_bits_shift(int at) { return at / 32 % 4 * 2; }

struct Q2_K {
  static constexpr int NUMBERS = 256, BYTES = 84;
  static __device__ __forceinline__ void values(float (&out)[CHUNK], const uint8_t *block, int at, float) {
    const uint32_t scales = block[at / 16];
    const float scale = times(half_at(block + 80), number(scales & 0xfu));
    const float minimum = times(half_at(block + 82), number(scales >> 4));
    const uint8_t *codes = block + 16 + two_bits_at(at);
#pragma unroll
    for (int i = 0; i < CHUNK; ++i) {
      out[i] = plus(times(scale, number(codes[i] >> two_bits_shift(at) & 3u)), -minimum);
    }
  }
};

struct Q3_K {
  static constexpr int NUMBERS = 256, BYTES = 110;
  static __device__ __forceinline__ void values(float (&out)[CHUNK], const uint8_t *block, int at, float) {
    const uint8_t *packed = block + 96;
    const int sub = at / 16;
    const int low = packed[sub % 8] >> (sub / 8 * 4) & 0xf, high = packed[8 + sub % 4] >> (sub / 4 * 2) & 3;
    const float scale = times(half_at(block + 108), number((low | high << 4) - 32));
    const uint8_t *codes = block + 32 + two_bits_at(at), *mask = block + at % 32;
#pragma unroll
    for (int i = 0; i < CHUNK; ++i) {
      // A set bit of the mask means that nothing is subtracted.
      const int subtracted = ((mask[i] >> (at / 32) & 1) ^ 1) << 2;
      out[i] = times(scale, number((codes[i] >> two_bits_shift(at) & 3) - subtracted));
    }
  }
};

// Scale and minimum of a sub-block of Q4_K and Q5_K: six bits each, in 12 bytes behind the two halves.
__device__ __forceinline__ void with_minimum(float &scale, float &minimum, const uint8_t *block, int sub) {
  const uint8_t *packed = block + 4;
  uint32_t of_scale, of_minimum;
  if (sub < 4) {
    of_scale = packed[sub] & 0x3fu;
    of_minimum = packed[4 + sub] & 0x3fu;
  } else {
    const uint32_t both = packed[4 + sub];
    of_scale = (both & 0xfu) | (packed[sub - 4] >> 2 & 0x30u);
    of_minimum = both >> 4 | (packed[sub] >> 2 & 0x30u);
  }
  scale = times(half_at(block), number(of_scale));
  minimum = times(half_at(block + 2), number(of_minimum));
}

struct Q4_K {
  static constexpr int NUMBERS = 256, BYTES = 144;
  static __device__ __forceinline__ void values(float (&out)[CHUNK], const uint8_t *block, int at, float) {
    float scale, minimum;
    with_minimum(scale, minimum, block, at / 32);
    const uint8_t *codes = block + 16 + at / 64 * 32 + at % 32;
#pragma unroll
    for (int i = 0; i < CHUNK; ++i) {
      out[i] = plus(times(scale, number(codes[i] >> (at / 32 % 2 * 4) & 0xfu)), -minimum);
    }
  }
};

struct Q5_K {
  static constexpr int NUMBERS = 256, BYTES = 176;
  static __device__ __forceinline__ void values(float (&out)[CHUNK], const uint8_t *block, int at, float) {
    float scale, minimum;
    const int sub = at / 32;
    with_minimum(scale, minimum, block, sub);
    const uint8_t *codes = block + 48 + at / 64 * 32 + at % 32, *high = block + 16 + at % 32;
#pragma unroll
    for (int i = 0; i < CHUNK; ++i) {
      const uint32_t code = (codes[i] >> (sub % 2 * 4) & 0xfu) | (high[i] >> sub & 1u) << 4;
      out[i] = plus(times(scale, number(code)), -minimum);
    }
  }
};

struct Q6_K {
  static constexpr int NUMBERS = 256, BYTES = 210;
  static __device__ __forceinline__ void values(float (&out)[CHUNK], const uint8_t *block, int at, float) {
    const int sub = at / 16;
    const float scale = times(half_at(block + 208), number(static_cast<int>(static_cast<int8_t>(block[192 + sub]))));
    // Each 64 bytes have the low halves of 64 numbers, then of the next 64 the high ones.
    const uint8_t *low = block + at / 128 * 64 + at % 64, *high = block + 128 + two_bits_at(at);
#pragma unroll
    for (int i = 0; i < CHUNK; ++i) {
      const int code = (low[i] >> (at / 64 % 2 * 4) & 0xf) | (high[i] >> two_bits_shift(at) & 3) << 4;
      out[i] = times(scale, number(code - 32));
    }
  }
};

// The levels of GGML's types with a table: bytes of two words.
__device__ __forceinline__ float level(uint32_t code) {
  constexpr uint64_t LOW = 0xf6eaddcfbfad9881ull, HIGH = 0x7159453526190d01ull;
  const uint64_t half = code < 8u ? LOW : HIGH;
  return number(static_cast<int>(static_cast<int8_t>(half >> (code % 8u * 8u))));
}

struct Iq4Nl {
  static constexpr int NUMBERS = 32, BYTES = 18;
  static __device__ __forceinline__ void values(float (&out)[CHUNK], const uint8_t *block, int at, float) {
    const float scale = half_at(block);
#pragma unroll
    for (int i = 0; i < CHUNK; ++i) {
      out[i] = times(scale, level(nibble(block + 2, at + i)));
    }
  }
};

struct Iq4Xs {
  static constexpr int NUMBERS = 256, BYTES = 136;
  static __device__ __forceinline__ void values(float (&out)[CHUNK], const uint8_t *block, int at, float) {
    const int sub = at / 32;
    const int low = block[4 + sub / 2] >> (sub % 2 * 4) & 0xf, high = (block[2] | block[3] << 8) >> (2 * sub) & 3;
    const float scale = times(half_at(block), number((low | high << 4) - 32));
#pragma unroll
    for (int i = 0; i < CHUNK; ++i) {
      out[i] = times(scale, level(nibble(block + 8 + sub * 16, at % 32 + i)));
    }
  }
};

// A grid's chunk of eight numbers.
__device__ __forceinline__ int64_t chunk_of_thread() { return static_cast<int64_t>(blockIdx.x) * THREADS + threadIdx.x; }

template <class Format> __device__ __forceinline__ void expand(const uint8_t *codes, uint16_t *out, int64_t chunks, float scale) {
  const int64_t chunk = chunk_of_thread();
  if (chunk < chunks) {
    const int64_t first = chunk * CHUNK;
    const uint8_t *block = codes + first / Format::NUMBERS * Format::BYTES;
    float values[CHUNK];
    Format::values(values, block, static_cast<int>(first % Format::NUMBERS), scale);
    put_chunk(out, chunk, packed(values));
  }
}

} // namespace

// Grid: a block for 2048 numbers.
#define EXPAND(name, Format)                                                                                            \
  extern "C" __global__ void __launch_bounds__(THREADS)                                                                 \
      expand_##name(const uint8_t *codes, uint16_t *out, int64_t chunks, float scale) {                                 \
    expand<Format>(codes, out, chunks, scale);                                                                          \
  }

EXPAND(f32, F32)
EXPAND(f16, F16)
EXPAND(bf16, Bf16)
EXPAND(e4m3, E4m3)
EXPAND(e5m2, E5m2)
EXPAND(q4_0, Q4_0)
EXPAND(q4_1, Q4_1)
EXPAND(q5_0, Q5_0)
EXPAND(q5_1, Q5_1)
EXPAND(q8_0, Q8_0)
EXPAND(q2_k, Q2_K)
EXPAND(q3_k, Q3_K)
EXPAND(q4_k, Q4_K)
EXPAND(q5_k, Q5_K)
EXPAND(q6_k, Q6_K)
EXPAND(iq4_nl, Iq4Nl)
EXPAND(iq4_xs, Iq4Xs)

// bitsandbytes' types of four bits: levels from a table, times the scale of a block of the flattened matrix. `block` is a multiple
// of eight.
extern "C" __global__ void __launch_bounds__(THREADS)
    expand_four_bits(const uint8_t *codes, const float *levels, const float *scales, uint16_t *out, int64_t chunks, int block) {
  const int64_t chunk = chunk_of_thread();
  if (chunk < chunks) {
    const float scale = scales[chunk * CHUNK / block];
    float values[CHUNK];
#pragma unroll
    for (int i = 0; i < CHUNK; ++i) {
      // The first of two is in the high half.
      const uint32_t code = codes[chunk * (CHUNK / 2) + i / 2] >> (i % 2 == 0 ? 4 : 0) & 0xfu;
      values[i] = times(levels[code], scale);
    }
    put_chunk(out, chunk, packed(values));
  }
}

// bitsandbytes' int8: a scale for each row. `columns` is a multiple of eight.
extern "C" __global__ void __launch_bounds__(THREADS)
    expand_int8(const uint8_t *codes, const float *scales, uint16_t *out, int64_t chunks, int columns) {
  // 1/127, rounded to f32.
  constexpr float STEP = 1.0f / 127.0f;
  const int64_t chunk = chunk_of_thread();
  if (chunk < chunks) {
    const float scale = scales[chunk * CHUNK / columns];
    float values[CHUNK];
#pragma unroll
    for (int i = 0; i < CHUNK; ++i) {
      values[i] = times(times(number(static_cast<int>(static_cast<int8_t>(codes[chunk * CHUNK + i]))), scale), STEP);
    }
    put_chunk(out, chunk, packed(values));
  }
}
