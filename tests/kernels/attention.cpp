// Attention on the emulated machine.
#include "../../src/engine/kernels/attention.cu"
#include "compare.h"

namespace {

Bounds bounds_of(const std::vector<int> &lengths) { return bounds_from<Bounds>(lengths); }

using Attention = void (*)(const uint16_t *, uint16_t *, Bounds, int, int, float);

void run_attention(int width, const uint16_t *qkv, uint16_t *out, const Bounds &bounds, int heads, int out_stride) {
  const Attention kernel = width == 16 ? attention_16 : width == 32 ? attention_32 : width == 64 ? attention_64 : attention_128;
  int blocks = 0;
  for (int i = 0; i < bounds.count; ++i) {
    blocks += (bounds.at[i + 1] - bounds.at[i] + 127) / 128;
  }
  const float scale = 1.0f / std::sqrt(static_cast<float>(width));
  emulation::launch({blocks, heads}, 256, 512 * width, [&] { kernel(qkv, out, bounds, heads, out_stride, scale); });
}

void test_attention(int width, int heads, const std::vector<int> &lengths, float deviation, double tolerance) {
  const Bounds bounds = bounds_of(lengths);
  const int rows = bounds.at[bounds.count];
  const int part = heads * width;
  auto qkv = random_values(static_cast<size_t>(rows) * 3 * part, deviation);
  Guarded out(static_cast<size_t>(rows) * part);
  run_attention(width, qkv->data(), out.data(), bounds, heads, part);
  std::vector<double> expected(static_cast<size_t>(rows) * part);
  const auto at = [&](int row, int which, int column) {
    return static_cast<double>(value(qkv->data()[static_cast<size_t>(row) * 3 * part + which * part + column]));
  };
  for (int sequence = 0; sequence < bounds.count; ++sequence) {
    for (int head = 0; head < heads; ++head) {
      for (int query = bounds.at[sequence]; query < bounds.at[sequence + 1]; ++query) {
        std::vector<double> weights;
        for (int key = bounds.at[sequence]; key < bounds.at[sequence + 1]; ++key) {
          double score = 0.0;
          for (int i = 0; i < width; ++i) {
            score += at(query, 0, head * width + i) * at(key, 1, head * width + i);
          }
          weights.push_back(score / std::sqrt(static_cast<double>(width)));
        }
        const double largest = *std::max_element(weights.begin(), weights.end());
        double total = 0.0;
        for (double &weight : weights) {
          weight = std::exp(weight - largest);
          total += weight;
        }
        for (int i = 0; i < width; ++i) {
          double sum = 0.0;
          for (size_t key = 0; key < weights.size(); ++key) {
            sum += weights[key] / total * at(bounds.at[sequence] + static_cast<int>(key), 2, head * width + i);
          }
          expected[static_cast<size_t>(query) * part + head * width + i] = sum;
        }
      }
    }
  }
  std::string name = "attention, " + std::to_string(heads) + " heads of " + std::to_string(width) + ", deviation " +
                     std::to_string(deviation).substr(0, 4) + ", lengths";
  for (int length : lengths) {
    name += " " + std::to_string(length);
  }
  compare(name, out, expected, tolerance);

  // Alone, a sequence gets the same bits.
  for (int sequence = 0; sequence < bounds.count; ++sequence) {
    const int first = bounds.at[sequence];
    const int length = bounds.at[sequence + 1] - first;
    Guarded own(static_cast<size_t>(length) * part);
    run_attention(width, qkv->data() + static_cast<size_t>(first) * 3 * part, own.data(), bounds_of({length}), heads, part);
    if (std::memcmp(own.data(), out.data() + static_cast<size_t>(first) * part, sizeof(uint16_t) * length * part) != 0) {
      std::printf("FAULT   sequence %d has other bits alone\n", sequence);
      ++faults;
    }
  }

  // Into the left part of a wider matrix, whose right part stays as it is.
  const int stride = part + 24;
  Guarded wide(static_cast<size_t>(rows) * stride);
  run_attention(width, qkv->data(), wide.data(), bounds, heads, stride);
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

} // namespace

int main() {
  // Odd lengths, tails, one key, a whole block, more blocks than one; scores so large that one weight takes all.
  for (int width : {16, 32, 64, 128}) {
    test_attention(width, 2, {1, 127, 200, 64}, 1.0f, 4e-3);
  }
  test_attention(128, 1, {128, 129, 300}, 6.0f, 2e-2);
  test_attention(64, 3, {65}, 40.0f, 2e-1);
  std::printf("%d faults\n", faults);
  return faults == 0 ? 0 : 1;
}
