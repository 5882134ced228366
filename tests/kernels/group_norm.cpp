// GroupNorm on the emulated machine.
#include "../../src/engine/kernels/group_norm.cu"
#include "compare.h"

namespace {

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
    group_moments(x->data(), moments.data(), channel_chunks * group_channels);
  });
  emulation::launch({static_cast<int>((channel_chunks + 1023) / 1024), channels}, 256, 64, [&] {
    group_norm(x->data(), moments.data(), weight->data(), bias->data(), out.data(), channel_chunks, group_channels,
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
  test_group_norm(32, 32, 8, 0.0f, true);
  test_group_norm(64, 32, 24, 0.0f, false);
  test_group_norm(64, 16, 1032, 100.0f, true);
  test_group_norm(8, 4, 8 * 1500, -5.0f, true);
  std::printf("%d faults\n", faults);
  return faults == 0 ? 0 : 1;
}
