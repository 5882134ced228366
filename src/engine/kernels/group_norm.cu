// GroupNorm of one image's channels, and optionally SiLU after it, channels last: read twice, written once.
//
// A thread has eight neighboring channels and iterates over the pixels. Statistics are taken per channel, of eight pixels at a
// time around their own mean, and merged level by level, each around the common mean: of a thread, of a part of the image, of
// the image. A group is merged from channels, so its width need not be a multiple of a chunk. The order of additions, and the
// bits, are always the same.
#include "device.cuh"

namespace {

constexpr int THREADS = 256;

// Pixels whose statistics a thread takes at a time, and that it normalizes.
constexpr int BATCH = 8;
constexpr int PIXELS_PER_THREAD = 16;

// The pixels of one part, possibly none.
__device__ __forceinline__ int64_t part_begin(int64_t pixels, int part, int parts) { return pixels * part / parts; }

// Mean and sum of squared differences from it of `count` values.
struct Moments {
  float mean = 0.0f;
  float squares = 0.0f;

  // Merged with those of more values: `share` is the new values' share of all.
  __device__ __forceinline__ void add(const Moments &more, float count, float share) {
    const float difference = more.mean - mean;
    mean += difference * share;
    squares += more.squares + difference * difference * count * share;
  }
};

__device__ __forceinline__ uint32_t word_of(const uint4 &chunk, int word) {
  return word == 0 ? chunk.x : word == 1 ? chunk.y : word == 2 ? chunk.z : chunk.w;
}

// The moments of one channel in eight pixels: its number in their chunks is `2 × word + half`.
__device__ __forceinline__ Moments moments_of(const uint4 (&chunks)[BATCH], int word, int half) {
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < BATCH; ++i) {
    sum += half == 0 ? low(word_of(chunks[i], word)) : high(word_of(chunks[i], word));
  }
  Moments moments;
  moments.mean = sum / BATCH;
#pragma unroll
  for (int i = 0; i < BATCH; ++i) {
    const float value = half == 0 ? low(word_of(chunks[i], word)) : high(word_of(chunks[i], word));
    moments.squares += (value - moments.mean) * (value - moments.mean);
  }
  return moments;
}

} // namespace

// `x [pixels, channels]` -> `moments[group][part]` = (mean, sum of squared differences from it).
// Grid: (parts); 8 bytes of shared memory for each value of 256 chunks.
extern "C" __global__ void __launch_bounds__(THREADS)
    group_moments(const uint16_t *x, float2 *moments, int64_t pixels, int channels, int groups, int parts) {
  SHARED_BYTES(shared);
  float2 *places = reinterpret_cast<float2 *>(shared);
  const int chunks = channels / CHUNK;
  const int rows = THREADS / chunks;
  const int row = threadIdx.x / chunks;
  const int column = threadIdx.x % chunks;
  const int64_t begin = part_begin(pixels, blockIdx.x, parts);
  const int64_t end = part_begin(pixels, blockIdx.x + 1, parts);

  Moments own[CHUNK];
  if (row < rows) {
    float count = 0.0f;
    int64_t pixel = begin + row;
    for (; pixel + (BATCH - 1) * rows < end; pixel += BATCH * rows) {
      uint4 batch[BATCH];
#pragma unroll
      for (int i = 0; i < BATCH; ++i) {
        batch[i] = chunk_at(x, (pixel + i * rows) * chunks + column);
      }
      const float share = BATCH / (count + BATCH);
#pragma unroll
      for (int i = 0; i < CHUNK; ++i) {
        own[i].add(moments_of(batch, i / 2, i % 2), count, share);
      }
      count += BATCH;
    }
    for (; pixel < end; pixel += rows) {
      float values[CHUNK];
      unpack(values, chunk_at(x, pixel * chunks + column));
#pragma unroll
      for (int i = 0; i < CHUNK; ++i) {
        own[i].add({values[i], 0.0f}, count, 1.0f / (count + 1.0f));
      }
      count += 1.0f;
    }
#pragma unroll
    for (int i = 0; i < CHUNK; ++i) {
      places[row * channels + column * CHUNK + i] = make_float2(own[i].mean, own[i].squares);
    }
  }
  __syncthreads();

  // A warp for each group, a lane for each thread's channel.
  const int width = channels / groups;
  const int lane = threadIdx.x % LANES;
  const float total = static_cast<float>((end - begin) * width);
  for (int group = threadIdx.x / LANES; group < groups; group += THREADS / LANES) {
    const auto each = [&](const auto &of) {
      float sum = 0.0f;
      for (int i = lane; i < rows * width; i += LANES) {
        const int64_t behind = begin + i / width;
        const float count = static_cast<float>(behind < end ? (end - behind + rows - 1) / rows : 0);
        sum += of(places[i / width * channels + group * width + i % width], count);
      }
      return warp_sum(sum);
    };
    const float mean = each([](const float2 &at, float count) { return at.x * count; }) / fmaxf(total, 1.0f);
    const float squares =
        each([&](const float2 &at, float count) { return at.y + count * (at.x - mean) * (at.x - mean); });
    if (lane == 0) {
      moments[group * parts + blockIdx.x] = make_float2(mean, squares);
    }
  }
}

// From the moments of all parts a factor and a summand for each channel: `scales [2, channels]`.
// Grid: (groups); a float of shared memory for each warp.
extern "C" __global__ void __launch_bounds__(THREADS)
    group_scales(const float2 *moments, const uint16_t *weight, const uint16_t *bias, float *scales, int64_t pixels,
                 int channels, int groups, int parts, float epsilon) {
  SHARED_BYTES(shared);
  float *sums = reinterpret_cast<float *>(shared);
  const int width = channels / groups;
  const float total = static_cast<float>(pixels * width);
  const auto each = [&](const auto &of) {
    float sum = 0.0f;
    for (int part = threadIdx.x; part < parts; part += THREADS) {
      const int64_t in_part = part_begin(pixels, part + 1, parts) - part_begin(pixels, part, parts);
      sum += of(moments[blockIdx.x * parts + part], static_cast<float>(in_part * width));
    }
    return block_sum<THREADS>(sum, sums);
  };
  const float mean = each([](const float2 &at, float count) { return at.x * count; }) / total;
  const float squares =
      each([&](const float2 &at, float count) { return at.y + count * (at.x - mean) * (at.x - mean); });
  const float inverse = rsqrtf(squares / total + epsilon);
  for (int i = threadIdx.x; i < width; i += THREADS) {
    const int channel = blockIdx.x * width + i;
    const float scale = inverse * low(weight[channel]);
    scales[channel] = scale;
    scales[channels + channel] = low(bias[channel]) - mean * scale;
  }
}

// `out = x scale + shift`, and SiLU of that if `is_activated`; `x` and `out [pixels, channels]`.
// Grid: (ceil(pixels / (16 × floor(256 × 8 / channels)))).
extern "C" __global__ void __launch_bounds__(THREADS)
    group_norm(const uint16_t *x, const float *scales, uint16_t *out, int64_t pixels, int channels, int is_activated) {
  const int chunks = channels / CHUNK;
  const int rows = THREADS / chunks;
  const int row = threadIdx.x / chunks;
  const int column = threadIdx.x % chunks;
  if (row >= rows) {
    return;
  }
  float scale[CHUNK], shift[CHUNK];
  const float4 *all = reinterpret_cast<const float4 *>(scales) + column * 2;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float4 scale_half = all[half];
    const float4 shift_half = all[chunks * 2 + half];
    float *to = scale + half * 4;
    to[0] = scale_half.x, to[1] = scale_half.y, to[2] = scale_half.z, to[3] = scale_half.w;
    to = shift + half * 4;
    to[0] = shift_half.x, to[1] = shift_half.y, to[2] = shift_half.z, to[3] = shift_half.w;
  }
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * rows * PIXELS_PER_THREAD + row;
#pragma unroll 4
  for (int i = 0; i < PIXELS_PER_THREAD; ++i) {
    const int64_t pixel = begin + i * rows;
    if (pixel < pixels) {
      float values[CHUNK];
      unpack(values, chunk_at(x, pixel * chunks + column));
#pragma unroll
      for (int k = 0; k < CHUNK; ++k) {
        const float normed = values[k] * scale[k] + shift[k];
        values[k] = is_activated != 0 ? normed * reciprocal(1.0f + power_of_two(-1.4426950408889634f * normed)) : normed;
      }
      put_chunk(out, pixel * chunks + column, packed(values));
    }
  }
}
