// What the kernels of attention have in common: which queries a block answers, and what the lanes that share a row of
// scores tell each other.
#pragma once

#include "device.cuh"

namespace {

// The queries of one block: some of one sequence.
struct Task {
  // The sequence's first row in the stream, and how many it has; 0: nothing is to be done.
  int64_t first;
  int length;
  // The first of the queries, counted from the sequence's beginning.
  int query;
};

// What block `block` of those in a row answers, of `QUERIES` queries each.
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

// The largest or the sum over the four lanes that share a row.
__device__ __forceinline__ float row_max(float value) {
  value = fmaxf(value, from_lane_xor(value, 1));
  return fmaxf(value, from_lane_xor(value, 2));
}
__device__ __forceinline__ float row_sum(float value) {
  value += from_lane_xor(value, 1);
  return value + from_lane_xor(value, 2);
}

} // namespace
