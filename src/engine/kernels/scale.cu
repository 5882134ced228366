// Scales the rows and columns of a matrix product in e4m3, where cublasLt does not.
#include "device.cuh"

namespace {

constexpr int THREADS = 256;

// Values of one 16-byte access of scales.
constexpr int SCALES = 4;

} // namespace

// values[i, j] × row_scales[i] × column_scales[j] in place, computed in float and rounded once. Rows of a multiple of eight
// values. Grid: rows.
extern "C" __global__ void __launch_bounds__(THREADS)
    scale_rows_and_columns(uint16_t *values, const float *row_scales, const float *column_scales, int width) {
  values += static_cast<int64_t>(blockIdx.x) * width;
  const float row_scale = row_scales[blockIdx.x];
  for (int chunk = threadIdx.x; chunk < width / CHUNK; chunk += THREADS) {
    float row[CHUNK];
    unpack(row, chunk_at(values, chunk));
#pragma unroll
    for (int part = 0; part < CHUNK / SCALES; ++part) {
      const float4 scales = reinterpret_cast<const float4 *>(column_scales)[chunk * (CHUNK / SCALES) + part];
      const float four[SCALES] = {scales.x, scales.y, scales.z, scales.w};
#pragma unroll
      for (int i = 0; i < SCALES; ++i) {
        row[part * SCALES + i] = row[part * SCALES + i] * row_scale * four[i];
      }
    }
    put_chunk(values, chunk, packed(row));
  }
}
