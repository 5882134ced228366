// The CUDA kernels, run on the emulated machine of emulation.h and compared with the plainest way to compute the same.
// `scripts/kernels-test.sh` compiles and runs this; exit status 1 where anything is off.
#include "../../src/engine/kernels/attention.cu"

// Each file has a THREADS of its own.
namespace rows {
#define THREADS ROW_THREADS
#include "../../src/engine/kernels/rows.cu"
#undef THREADS
} // namespace rows

namespace norms {
#define THREADS NORM_THREADS
#include "../../src/engine/kernels/group_norm.cu"
#undef THREADS
} // namespace norms

#include <random>
#include <string>

namespace {

using Values = std::vector<uint16_t>;

int faults = 0;
std::mt19937 generator(7);

float value(uint16_t bits) { return as_float(static_cast<uint32_t>(bits) << 16); }

// Memory on a boundary of 16 bytes, with a strip before and behind that must stay as it is.
class Guarded {
public:
  explicit Guarded(size_t count) : memory_(count + 2 * STRIP, MARK) {
    while (reinterpret_cast<uintptr_t>(memory_.data() + start_) % 16 != 0 || start_ < STRIP / 2) {
      ++start_;
    }
    count_ = count;
  }
  uint16_t *data() { return memory_.data() + start_; }
  bool is_whole() const {
    const auto is_mark = [](uint16_t word) { return word == MARK; };
    return std::all_of(memory_.begin(), memory_.begin() + start_, is_mark) &&
           std::all_of(memory_.begin() + start_ + count_, memory_.end(), is_mark);
  }

private:
  static constexpr size_t STRIP = 64;
  static constexpr uint16_t MARK = 0x7ead;
  Values memory_;
  size_t start_ = 0;
  size_t count_ = 0;
};

std::shared_ptr<Guarded> random_values(size_t count, float deviation, float mean = 0.0f) {
  std::normal_distribution<float> normal(mean, deviation);
  auto values = std::make_shared<Guarded>(count);
  for (size_t i = 0; i < count; ++i) {
    values->data()[i] = to_bf16(normal(generator));
  }
  return values;
}

Bounds bounds_of(const std::vector<int> &lengths) {
  Bounds bounds{};
  for (int length : lengths) {
    bounds.at[bounds.count + 1] = bounds.at[bounds.count] + length;
    ++bounds.count;
  }
  return bounds;
}

// `actual` may be off by half a unit in the last place of bf16, and by `tolerance`.
void compare(const std::string &what, Guarded &actual, const std::vector<double> &expected, double tolerance) {
  double worst = 0.0;
  size_t at = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    const double slack = std::abs(expected[i]) / 256.0;
    const double off = std::abs(value(actual.data()[i]) - expected[i]) - slack;
    if (!(off <= worst)) {
      worst = off;
      at = i;
    }
  }
  const bool is_right = worst <= tolerance && actual.is_whole();
  std::printf("%-7s %s: at most %.2e beyond rounding, at %zu of %zu%s\n", is_right ? "ok" : "FAULT", what.c_str(), worst, at,
              expected.size(), actual.is_whole() ? "" : "; wrote beside its place");
  faults += is_right ? 0 : 1;
}

using Attention = void (*)(const uint16_t *, uint16_t *, Bounds, int, float);

void run_attention(int width, const uint16_t *qkv, uint16_t *out, const Bounds &bounds, int heads) {
  const Attention kernel = width == 16 ? attention_16 : width == 32 ? attention_32 : width == 64 ? attention_64 : attention_128;
  int blocks = 0;
  for (int i = 0; i < bounds.count; ++i) {
    blocks += (bounds.at[i + 1] - bounds.at[i] + 127) / 128;
  }
  const float scale = 1.0f / std::sqrt(static_cast<float>(width));
  emulation::launch({blocks, heads}, 256, 512 * width, [&] { kernel(qkv, out, bounds, heads, scale); });
}

void test_attention(int width, int heads, const std::vector<int> &lengths, float deviation, double tolerance) {
  const Bounds bounds = bounds_of(lengths);
  const int rows = bounds.at[bounds.count];
  const int part = heads * width;
  auto qkv = random_values(static_cast<size_t>(rows) * 3 * part, deviation);
  Guarded out(static_cast<size_t>(rows) * part);
  run_attention(width, qkv->data(), out.data(), bounds, heads);
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
    run_attention(width, qkv->data() + static_cast<size_t>(first) * 3 * part, own.data(), bounds_of({length}), heads);
    if (std::memcmp(own.data(), out.data() + static_cast<size_t>(first) * part, sizeof(uint16_t) * length * part) != 0) {
      std::printf("FAULT   sequence %d has other bits alone\n", sequence);
      ++faults;
    }
  }
}

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
    rows::modulated_layer_norm(x->data(), shift, scale, out.data(), bounds, width, stride, stride, 1e-6f);
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
    rows::gated_residual(x->data(), y->data(), is_biased ? bias->data() : nullptr, gate->data(), out.data(), bounds, width,
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

void test_rotation(int heads, int width, int rows, bool is_rotated, bool is_biased) {
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
  Guarded out(static_cast<size_t>(rows) * 3 * part);
  emulation::launch({rows, 1}, 256, 0, [&] {
    rows::normalize_and_rotate(qkv->data(), is_biased ? bias->data() : nullptr, scales->data(), scales->data() + width, cos,
                               sin, out.data(), heads, width, stride, 1e-6f);
  });
  std::vector<double> expected;
  for (int row = 0; row < rows; ++row) {
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
  compare("normalize and rotate, " + std::to_string(heads) + " heads of " + std::to_string(width), out, expected, 1e-4);
}

void test_gelu(int left_width, int right_width, int rows, bool is_biased) {
  const int stride = left_width + right_width + 16;
  auto left = random_values(static_cast<size_t>(rows) * stride, 1.0f);
  auto right = random_values(static_cast<size_t>(rows) * stride, 4.0f);
  auto bias = random_values(right_width, is_biased ? 2.0f : 0.0f);
  right->data()[0] = to_bf16(1e30f);
  right->data()[1] = to_bf16(-1e30f);
  right->data()[2] = to_bf16(-0.0f);
  Guarded out(static_cast<size_t>(rows) * (left_width + right_width));
  emulation::launch({rows, 1}, 256, 0, [&] {
    rows::beside_gelu_tanh(left->data(), right->data(), is_biased ? bias->data() : nullptr, out.data(), left_width,
                           right_width, stride, stride);
  });
  std::vector<double> expected;
  for (int row = 0; row < rows; ++row) {
    for (int i = 0; i < left_width; ++i) {
      expected.push_back(value(left->data()[row * stride + i]));
    }
    for (int i = 0; i < right_width; ++i) {
      const double x = static_cast<double>(value(right->data()[row * stride + i])) + value(bias->data()[i]);
      expected.push_back(0.5 * x * (1.0 + std::tanh(std::sqrt(2.0 / M_PI) * (x + 0.044715 * x * x * x))));
    }
  }
  compare("GELU, " + std::to_string(left_width) + " | " + std::to_string(right_width), out, expected, 1e-5);
}

void test_group_norm(int channels, int groups, int positions, float mean, bool is_activated) {
  const size_t count = static_cast<size_t>(channels) * positions;
  auto x = random_values(count, 3.0f, mean);
  auto weight = random_values(channels, 1.0f);
  auto bias = random_values(channels, 1.0f);
  Guarded out(count);
  std::vector<float2> moments(groups * 64);
  const int64_t channel_chunks = positions / 8;
  const int group_channels = channels / groups;
  emulation::launch({64, groups}, 256, 64, [&] {
    norms::group_moments(x->data(), moments.data(), channel_chunks * group_channels);
  });
  emulation::launch({static_cast<int>((channel_chunks + 1023) / 1024), channels}, 256, 64, [&] {
    norms::group_norm(x->data(), moments.data(), weight->data(), bias->data(), out.data(), channel_chunks, group_channels,
                      1e-6f, is_activated ? 1 : 0);
  });
  std::vector<double> expected;
  const size_t group_size = static_cast<size_t>(group_channels) * positions;
  for (int group = 0; group < groups; ++group) {
    const uint16_t *values = x->data() + group * group_size;
    double mean = 0.0, variance = 0.0;
    for (size_t i = 0; i < group_size; ++i) {
      mean += value(values[i]) / static_cast<double>(group_size);
    }
    for (size_t i = 0; i < group_size; ++i) {
      variance += (value(values[i]) - mean) * (value(values[i]) - mean) / static_cast<double>(group_size);
    }
    for (size_t i = 0; i < group_size; ++i) {
      const size_t channel = group * group_channels + i / positions;
      const double normed = (value(values[i]) - mean) / std::sqrt(variance + 1e-6);
      const double y = normed * value(weight->data()[channel]) + value(bias->data()[channel]);
      expected.push_back(is_activated ? y / (1.0 + std::exp(-y)) : y);
    }
  }
  compare("group norm, " + std::to_string(channels) + " channels in " + std::to_string(groups) + " of " +
              std::to_string(positions) + (is_activated ? ", SiLU" : ""),
          out, expected, 1e-3);
}

} // namespace

int main() {
  // Odd lengths, tails, one key, a whole block, more blocks than one; scores so large that one weight takes all.
  for (int width : {16, 32, 64, 128}) {
    test_attention(width, 2, {1, 127, 200, 64}, 1.0f, 4e-3);
  }
  test_attention(128, 1, {128, 129, 300}, 6.0f, 2e-2);
  test_attention(64, 3, {65}, 40.0f, 2e-1);
  for (int width : {8, 64, 136, 3072}) {
    test_layer_norm(width, {5, 1, 12}, 2.0f, 0.0f);
  }
  test_layer_norm(3072, {2, 3}, 100.0f, 1000.0f);
  for (int width : {8, 136, 3072}) {
    test_gated_residual(width, {5, 1, 12}, width != 136);
  }
  for (int width : {16, 32, 64, 128}) {
    test_rotation(5, width, 7, true, true);
    test_rotation(24, width, 3, false, width < 64);
  }
  test_gelu(0, 24, 5, false);
  test_gelu(3072, 12288, 2, true);
  test_gelu(8, 8, 9, false);
  test_group_norm(32, 32, 8, 0.0f, true);
  test_group_norm(64, 32, 24, 0.0f, false);
  test_group_norm(64, 16, 1032, 100.0f, true);
  test_group_norm(8, 4, 8 * 1500, -5.0f, true);
  std::printf("%d faults\n", faults);
  return faults == 0 ? 0 : 1;
}
