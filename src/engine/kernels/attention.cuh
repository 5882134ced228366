// Shared by the kernels of attention: which queries a block computes, and reductions over the lanes that share a row of
// scores.
#pragma once

#include "device.cuh"

namespace {

// The queries of one block, all of one sequence.
struct Task {
  // The sequence's first row in the stream, and its length; 0: the block has no work.
  int64_t first;
  int length;
  // The first of the queries, from the sequence's beginning.
  int query;
};

// The queries of block `block`, with `QUERIES` queries for each.
template <int QUERIES> __device__ __forceinline__ Task task_of(const Bounds &bounds, int block) {
  for (int sequence = 0; sequence < bounds.count; ++sequence) {
    const int length = bounds.at[sequence + 1] - bounds.at[sequence];
    const int blocks = (length + QUERIES - 1) / QUERIES;
    if (block < blocks) {
      return {bounds.at[sequence], length, block * QUERIES};
    }
    block -= blocks;
  }
  return {0, 0, 0};
}

// Maximum or sum over the four lanes that share a row.
__device__ __forceinline__ float row_max(float value) {
  value = fmaxf(value, from_lane_xor(value, 1));
  return fmaxf(value, from_lane_xor(value, 2));
}
__device__ __forceinline__ float row_sum(float value) {
  value += from_lane_xor(value, 1);
  return value + from_lane_xor(value, 2);
}

} // namespace
