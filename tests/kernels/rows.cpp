// Operations on each token by itself, on the emulated machine.
#include "../../src/engine/kernels/rows.cu"
#include "compare.h"

namespace {

Bounds bounds_of(const std::vector<int> &lengths) { return bounds_from<Bounds>(lengths); }

void test_layer_norm(int width, const std::vector<int> &lengths, float deviation, float mean) {
  const Bounds bounds = bounds_of(lengths);
  const int rows = bounds.at[bounds.count];
  // Shift and scale are slices of a wider matrix.
  const int stride = 3 * width;
  auto x = random_values(static_cast<size_t>(rows) * width, deviation, mean);
  auto modulation = random_values(static_cast<size_t>(bounds.count) * stride, 0.5f);
  const uint16_t *shift = modulation->data();
  const uint16_t *scale = modulation->data() + width;
  Guarded out(static_cast<size_t>(rows) * width);
  emulation::launch({rows, 1}, 256, 64, [&] {
    modulated_layer_norm(x->data(), shift, scale, out.data(), bounds, width, stride, stride, 1e-6f);
  });
  std::vector<double> expected;
  for (int sequence = 0; sequence < bounds.count; ++sequence) {
    for (int row = bounds.at[sequence]; row < bounds.at[sequence + 1]; ++row) {
      const uint16_t *values = x->data() + static_cast<size_t>(row) * width;
      double mean = 0.0, variance = 0.0;
      for (int i = 0; i < width; ++i) {
        mean += value(values[i]) / static_cast<double>(width);
      }
      for (int i = 0; i < width; ++i) {
        variance += (value(values[i]) - mean) * (value(values[i]) - mean) / width;
      }
      for (int i = 0; i < width; ++i) {
        const double normed = (value(values[i]) - mean) / std::sqrt(variance + 1e-6);
        expected.push_back(normed * (1.0 + value(scale[sequence * stride + i])) + value(shift[sequence * stride + i]));
      }
    }
  }
  compare("layer norm, width " + std::to_string(width) + ", deviation " + std::to_string(deviation), out, expected, 2e-3);
}

void test_gated_residual(int width, const std::vector<int> &lengths, bool is_biased) {
  const Bounds bounds = bounds_of(lengths);
  const int rows = bounds.at[bounds.count];
  const int stride = 2 * width;
  auto x = random_values(static_cast<size_t>(rows) * width, 3.0f);
  auto y = random_values(static_cast<size_t>(rows) * width, 300.0f);
  auto gate = random_values(static_cast<size_t>(bounds.count) * stride, 1.0f);
  auto bias = random_values(width, is_biased ? 100.0f : 0.0f);
  Guarded out(static_cast<size_t>(rows) * width);
  emulation::launch({rows, 1}, 256, 0, [&] {
    gated_residual(x->data(), y->data(), is_biased ? bias->data() : nullptr, gate->data(), out.data(), bounds, width,
                         stride);
  });
  std::vector<double> expected;
  for (int row = 0; row < rows; ++row) {
    const int sequence = sequence_of(bounds, row);
    for (int i = 0; i < width; ++i) {
      const size_t at = static_cast<size_t>(row) * width + i;
      expected.push_back(value(x->data()[at]) +
                         static_cast<double>(value(gate->data()[sequence * stride + i])) *
                             (static_cast<double>(value(y->data()[at])) + value(bias->data()[i])));
    }
  }
  compare("gated residual, width " + std::to_string(width), out, expected, 1e-4);
}

// `gap` rows are left before each sequence, and behind the last, for another stream.
void test_rotation(int heads, int width, const std::vector<int> &lengths, int gap, bool is_rotated, bool is_biased) {
  const Bounds sources = bounds_of(lengths);
  Bounds targets = sources;
  for (int sequence = 0; sequence <= sources.count; ++sequence) {
    targets.at[sequence] += (sequence + 1) * gap;
  }
  const int rows = sources.at[sources.count];
  const int part = heads * width;
  const int stride = 3 * part + 40;
  auto qkv = random_values(static_cast<size_t>(rows) * stride, 2.0f);
  auto scales = random_values(2 * width, 0.5f, 1.0f);
  auto bias = random_values(3 * part, is_biased ? 2.0f : 0.0f);
  std::vector<float4> cosines(static_cast<size_t>(rows) * width / 8), sines(cosines.size());
  std::uniform_real_distribution<float> angles(0.0f, 7.0f);
  for (size_t i = 0; i < 4 * cosines.size(); ++i) {
    const float angle = angles(generator);
    reinterpret_cast<float *>(cosines.data())[i] = std::cos(angle);
    reinterpret_cast<float *>(sines.data())[i] = std::sin(angle);
  }
  const float *cos = is_rotated ? reinterpret_cast<float *>(cosines.data()) : nullptr;
  const float *sin = is_rotated ? reinterpret_cast<float *>(sines.data()) : nullptr;
  const size_t joint_rows = rows + (sources.count + 1) * static_cast<size_t>(gap);
  Guarded out(joint_rows * 3 * part);
  // The gaps must stay unchanged.
  const uint16_t other = to_bf16(42.0f);
  std::fill_n(out.data(), joint_rows * 3 * part, other);
  emulation::launch({rows, 1}, 256, 0, [&] {
    normalize_and_rotate(qkv->data(), is_biased ? bias->data() : nullptr, scales->data(), scales->data() + width, cos,
                         sin, out.data(), sources, targets, heads, width, stride, 1e-6f);
  });
  std::vector<double> expected;
  const auto leave_gap = [&] { expected.insert(expected.end(), static_cast<size_t>(gap) * 3 * part, value(other)); };
  for (int row = 0; row < rows; ++row) {
    if (std::find(sources.at, sources.at + sources.count, row) != sources.at + sources.count) {
      leave_gap();
    }
    const uint16_t *values = qkv->data() + static_cast<size_t>(row) * stride;
    for (int head = 0; head < 3 * heads; ++head) {
      std::vector<double> own(width);
      double squares = 0.0;
      for (int i = 0; i < width; ++i) {
        own[i] = static_cast<double>(value(values[head * width + i])) + value(bias->data()[head * width + i]);
        squares += own[i] * own[i];
      }
      if (head < 2 * heads) {
        for (int i = 0; i < width; ++i) {
          own[i] *= value(scales->data()[(head < heads ? 0 : width) + i]) / std::sqrt(squares / width + 1e-6);
        }
        for (int pair = 0; is_rotated && pair < width / 2; ++pair) {
          const double c = cos[row * width / 2 + pair], s = sin[row * width / 2 + pair];
          const double a = own[2 * pair], b = own[2 * pair + 1];
          own[2 * pair] = a * c - b * s;
          own[2 * pair + 1] = a * s + b * c;
        }
      }
      expected.insert(expected.end(), own.begin(), own.end());
    }
  }
  leave_gap();
  compare("normalize and rotate, " + std::to_string(heads) + " heads of " + std::to_string(width) + ", gaps of " +
              std::to_string(gap), out, expected, 1e-4);
}

void test_gelu(int width, int rows, bool is_biased) {
  const int stride = width + 16;
  auto x = random_values(static_cast<size_t>(rows) * stride, 4.0f);
  auto bias = random_values(width, is_biased ? 2.0f : 0.0f);
  x->data()[0] = to_bf16(1e30f);
  x->data()[1] = to_bf16(-1e30f);
  x->data()[2] = to_bf16(-0.0f);
  Guarded out(static_cast<size_t>(rows) * width);
  emulation::launch({rows, 1}, 256, 0, [&] {
    gelu_tanh(x->data(), is_biased ? bias->data() : nullptr, out.data(), width, stride);
  });
  std::vector<double> expected;
  for (int row = 0; row < rows; ++row) {
    for (int i = 0; i < width; ++i) {
      const double biased = static_cast<double>(value(x->data()[row * stride + i])) + value(bias->data()[i]);
      const double inner = std::sqrt(2.0 / M_PI) * (biased + 0.044715 * biased * biased * biased);
      expected.push_back(0.5 * biased * (1.0 + std::tanh(inner)));
    }
  }
  compare("GELU, width " + std::to_string(width), out, expected, 1e-5);
}

} // namespace

int main() {
  for (int width : {8, 64, 136, 3072}) {
    test_layer_norm(width, {5, 1, 12}, 2.0f, 0.0f);
  }
  test_layer_norm(3072, {2, 3}, 100.0f, 1000.0f);
  for (int width : {8, 136, 3072}) {
    test_gated_residual(width, {5, 1, 12}, width != 136);
  }
  for (int width : {16, 32, 64, 128}) {
    test_rotation(5, width, {7}, 0, true, true);
    test_rotation(5, width, {3, 1, 5}, 2, true, true);
    test_rotation(24, width, {3}, 1, false, width < 64);
  }
  test_gelu(24, 5, false);
  test_gelu(12288, 2, true);
  test_gelu(8, 9, true);
  std::printf("%d faults\n", faults);
  return faults == 0 ? 0 : 1;
}
