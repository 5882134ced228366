// The test of all attention kernels. The kernel must be included before.
#pragma once

#include "plain_attention.h"

namespace {

using Attention = void (*)(const uint16_t *, uint16_t *, Bounds, int, int, float);

// A kernel, and its launch: a block for 128 queries of one head.
struct Launch {
  std::string name;
  Attention kernel;
  int width;
  size_t shared_bytes;
  int threads = 256;

  void run(const uint16_t *qkv, uint16_t *out, const Bounds &bounds, int heads, int out_stride) const {
    int blocks = 0;
    for (int i = 0; i < bounds.count; ++i) {
      blocks += (bounds.at[i + 1] - bounds.at[i] + 127) / 128;
    }
    const float scale = 1.0f / std::sqrt(static_cast<float>(width));
    emulation::launch({blocks, heads}, threads, shared_bytes, [&] { kernel(qkv, out, bounds, heads, out_stride, scale); });
  }
};

void test_attention(const Launch &launch, int heads, const std::vector<int> &lengths, float deviation, double tolerance) {
  const int width = launch.width;
  const Bounds bounds = bounds_of(lengths);
  const int rows = bounds.at[bounds.count];
  const int part = heads * width;
  auto qkv = random_values(static_cast<size_t>(rows) * 3 * part, deviation);
  Guarded out(static_cast<size_t>(rows) * part);
  launch.run(qkv->data(), out.data(), bounds, heads, part);
  const auto scaled = [&](double score, int, int, int) { return score / std::sqrt(static_cast<double>(width)); };
  const std::vector<double> expected = plain_attention(qkv->data(), bounds, heads, width, scaled);
  std::string name = launch.name + ", " + std::to_string(heads) + " heads of " + std::to_string(width) + ", deviation " +
                     std::to_string(deviation).substr(0, 4) + ", lengths";
  for (int length : lengths) {
    name += " " + std::to_string(length);
  }
  compare(name, out, expected, tolerance);

  // Unbatched, a sequence gets the same bits.
  for (int sequence = 0; sequence < bounds.count; ++sequence) {
    const int first = bounds.at[sequence];
    const int length = bounds.at[sequence + 1] - first;
    Guarded own(static_cast<size_t>(length) * part);
    launch.run(qkv->data() + static_cast<size_t>(first) * 3 * part, own.data(), bounds_of({length}), heads, part);
    if (std::memcmp(own.data(), out.data() + static_cast<size_t>(first) * part, sizeof(uint16_t) * length * part) != 0) {
      std::printf("FAULT   sequence %d has other bits unbatched\n", sequence);
      ++faults;
    }
  }

  // Into the left part of a wider matrix, whose right part stays unchanged.
  const int stride = part + 24;
  Guarded wide(static_cast<size_t>(rows) * stride);
  launch.run(qkv->data(), wide.data(), bounds, heads, stride);
  for (int row = 0; row < rows; ++row) {
    const uint16_t *found = wide.data() + static_cast<size_t>(row) * stride;
    const bool is_same = std::memcmp(found, out.data() + static_cast<size_t>(row) * part, sizeof(uint16_t) * part) == 0;
    if (!is_same || !std::all_of(found + part, found + stride, Guarded::is_mark)) {
      std::printf("FAULT   row %d of a wider matrix\n", row);
      ++faults;
    }
  }
  faults += wide.is_whole() ? 0 : 1;
}

// NaN in one sequence stays in that sequence.
void test_neighbours(const Launch &launch, int length) {
  const std::vector<int> lengths = {70, length, 130};
  const Bounds bounds = bounds_of(lengths);
  const int heads = 2;
  const int part = heads * launch.width;
  auto qkv = random_values(static_cast<size_t>(bounds.at[3]) * 3 * part, 1.0f);
  const auto row = [&](Guarded &values, int at, int width) { return values.data() + static_cast<size_t>(at) * width; };
  constexpr uint16_t INFINITE = 0x7f80, NO_NUMBER = 0x7fc0;
  std::fill(qkv->data(), row(*qkv, bounds.at[1], 3 * part), NO_NUMBER);
  std::fill(row(*qkv, bounds.at[2], 3 * part), row(*qkv, bounds.at[3], 3 * part), INFINITE);
  Guarded together(static_cast<size_t>(bounds.at[3]) * part), alone(static_cast<size_t>(length) * part);
  launch.run(qkv->data(), together.data(), bounds, heads, part);
  launch.run(row(*qkv, bounds.at[1], 3 * part), alone.data(), bounds_of({length}), heads, part);
  const uint16_t *found = row(together, bounds.at[1], part);
  const bool is_same = std::memcmp(found, alone.data(), sizeof(uint16_t) * length * part) == 0;
  const bool is_finite = std::all_of(found, found + length * part, [](uint16_t bits) { return std::isfinite(value(bits)); });
  const bool is_right = is_same && is_finite;
  std::printf("%-7s %s, %d rows between NaN\n", is_right ? "ok" : "FAULT", launch.name.c_str(), length);
  faults += is_right ? 0 : 1;
}

} // namespace
