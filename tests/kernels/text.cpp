// T5's operations on the emulated machine: attention with a bias, normalization and gated activation.
#include "../../src/engine/kernels/attention.cu"

namespace text {
#define THREADS TEXT_THREADS
#include "../../src/engine/kernels/text.cu"
#undef THREADS
} // namespace text

#include "plain_attention.h"

namespace {

using BiasedAttention = void (*)(const uint16_t *, uint16_t *, const float *, int, Bounds, int, int, float);

void test_biased_attention(int width, int heads, int tokens, float deviation, float scale, double tolerance) {
  const BiasedAttention kernel = width == 16 ? biased_attention_16 : width == 32 ? biased_attention_32 : biased_attention_64;
  const int part = heads * width;
  auto qkv = random_values(static_cast<size_t>(tokens) * 3 * part, deviation);
  const int bias_stride = 2 * tokens;
  std::vector<float> bias(static_cast<size_t>(heads) * bias_stride);
  std::normal_distribution<float> normal(0.0f, 3.0f);
  for (float &value : bias) {
    value = normal(generator);
  }
  Guarded out(static_cast<size_t>(tokens) * part);
  const Bounds bounds = bounds_of({tokens});
  emulation::launch({(tokens + 127) / 128, heads}, 256, 512 * width + 8 * tokens,
                    [&] { kernel(qkv->data(), out.data(), bias.data(), bias_stride, bounds, heads, part, scale); });
  const auto weigh = [&](double score, int head, int query, int key) {
    return (score + bias[static_cast<size_t>(head) * bias_stride + key - query + tokens - 1]) * scale;
  };
  const std::vector<double> expected = plain_attention(qkv->data(), bounds, heads, width, weigh);
  compare("biased attention, " + std::to_string(heads) + " heads of " + std::to_string(width) + ", " +
              std::to_string(tokens) + " tokens, scale " + std::to_string(scale).substr(0, 5),
          out, expected, tolerance);
}

void test_rms_norm(int width, int rows, float deviation, float mean) {
  auto x = random_values(static_cast<size_t>(rows) * width, deviation, mean);
  auto scale = random_values(width, 0.5f, 1.0f);
  Guarded out(static_cast<size_t>(rows) * width);
  emulation::launch({rows, 1}, 256, 32, [&] { text::rms_norm(x->data(), scale->data(), out.data(), width, 1e-6f); });
  std::vector<double> expected;
  for (int row = 0; row < rows; ++row) {
    const uint16_t *values = x->data() + static_cast<size_t>(row) * width;
    double squares = 0.0;
    for (int i = 0; i < width; ++i) {
      squares += static_cast<double>(value(values[i])) * value(values[i]);
    }
    for (int i = 0; i < width; ++i) {
      expected.push_back(value(values[i]) * value(scale->data()[i]) / std::sqrt(squares / width + 1e-6));
    }
  }
  compare("RMSNorm, width " + std::to_string(width) + ", deviation " + std::to_string(deviation), out, expected, 1e-6);
}

void test_gated_gelu(int width, int rows, float deviation) {
  auto x = random_values(static_cast<size_t>(rows) * 2 * width, deviation);
  x->data()[0] = to_bf16(-1e30f);
  x->data()[1] = to_bf16(-0.0f);
  Guarded out(static_cast<size_t>(rows) * width);
  emulation::launch({rows, 1}, 256, 0, [&] { text::gated_gelu(x->data(), out.data(), width); });
  std::vector<double> expected;
  for (int row = 0; row < rows; ++row) {
    for (int i = 0; i < width; ++i) {
      const double gate = value(x->data()[static_cast<size_t>(row) * 2 * width + i]);
      const double up = value(x->data()[static_cast<size_t>(row) * 2 * width + width + i]);
      const double inner = std::sqrt(2.0 / M_PI) * (gate + 0.044715 * gate * gate * gate);
      expected.push_back(0.5 * gate * (1.0 + std::tanh(inner)) * up);
    }
  }
  compare("gated GELU, width " + std::to_string(width) + ", deviation " + std::to_string(deviation), out, expected,
          1e-5 * deviation);
}

} // namespace

int main() {
  for (int width : {16, 32, 64}) {
    test_biased_attention(width, 2, 200, 0.5f, 1.0f, 4e-3);
    test_biased_attention(width, 3, 1, 1.0f, 1.0f, 4e-3);
  }
  test_biased_attention(64, 1, 512, 0.5f, 1.0f, 4e-3);
  test_biased_attention(64, 1, 129, 3.0f, 0.125f, 1e-2);
  for (int width : {8, 136, 4096}) {
    test_rms_norm(width, 5, 2.0f, 0.0f);
  }
  test_rms_norm(4096, 2, 3000.0f, 500.0f);
  test_gated_gelu(8, 3, 1.0f);
  test_gated_gelu(10240, 2, 4.0f);
  std::printf("%d faults\n", faults);
  return faults == 0 ? 0 : 1;
}
