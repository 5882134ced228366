// GroupNorm on the emulated machine.
#include "../../src/engine/kernels/group_norm.cu"
#include "compare.h"

namespace {

void test_group_norm(int channels, int groups, int pixels, int parts, float mean, bool is_activated) {
  const size_t count = static_cast<size_t>(channels) * pixels;
  auto x = random_values(count, 3.0f, mean);
  auto weight = random_values(channels, 1.0f);
  auto bias = random_values(channels, 1.0f);
  Guarded out(count);
  std::vector<float2> moments(groups * parts);
  const std::unique_ptr<float4[]> scales(new float4[channels / 2]);
  float *numbers = reinterpret_cast<float *>(scales.get());
  emulation::launch({parts, 1}, 256, 256 * 8 * 8, [&] {
    group_moments(x->data(), moments.data(), pixels, channels, groups, parts);
  });
  emulation::launch({groups, 1}, 256, 32, [&] {
    group_scales(moments.data(), weight->data(), bias->data(), numbers, pixels, channels, groups, parts, 1e-6f);
  });
  const int block_pixels = 16 * (256 * 8 / channels);
  emulation::launch({(pixels + block_pixels - 1) / block_pixels, 1}, 256, 0, [&] {
    group_norm(x->data(), numbers, out.data(), pixels, channels, is_activated ? 1 : 0);
  });
  std::vector<double> expected(count);
  const int width = channels / groups;
  const double size = static_cast<double>(width) * pixels;
  for (int group = 0; group < groups; ++group) {
    const auto each = [&](const auto &body) {
      for (int pixel = 0; pixel < pixels; ++pixel) {
        for (int channel = group * width; channel < (group + 1) * width; ++channel) {
          body(static_cast<size_t>(pixel) * channels + channel, channel);
        }
      }
    };
    double mean = 0.0, variance = 0.0;
    each([&](size_t i, int) { mean += value(x->data()[i]) / size; });
    each([&](size_t i, int) { variance += (value(x->data()[i]) - mean) * (value(x->data()[i]) - mean) / size; });
    each([&](size_t i, int channel) {
      const double normed = (value(x->data()[i]) - mean) / std::sqrt(variance + 1e-6);
      const double y = normed * value(weight->data()[channel]) + value(bias->data()[channel]);
      expected[i] = is_activated ? y / (1.0 + std::exp(-y)) : y;
    });
  }
  compare("group norm, " + std::to_string(channels) + " channels in " + std::to_string(groups) + " of " +
              std::to_string(pixels) + " pixels" + (is_activated ? ", SiLU" : ""),
          out, expected, 1e-3);
}

} // namespace

int main() {
  // Groups of one channel, of a chunk and less, of six, of more than a chunk; more parts than pixels; means far from zero.
  test_group_norm(32, 32, 7, 16, 0.0f, true);
  test_group_norm(64, 32, 33, 4, 0.0f, false);
  test_group_norm(48, 8, 1031, 3, 100.0f, true);
  test_group_norm(128, 32, 2000, 300, -5.0f, true);
  test_group_norm(512, 32, 129, 2, 30.0f, false);
  test_group_norm(2048, 16, 21, 1, 0.0f, true);
  std::printf("%d faults\n", faults);
  return faults == 0 ? 0 : 1;
}
