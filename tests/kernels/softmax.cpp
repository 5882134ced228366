// Softmax on the emulated machine.
#include "../../src/engine/kernels/softmax.cu"
#include "compare.h"

namespace {

void test_softmax(int rows, int columns, float deviation, float mean) {
  const size_t count = static_cast<size_t>(rows) * columns;
  auto x = random_values(count, deviation, mean);
  Guarded out(count);
  const double scale = 1.0 / std::sqrt(512.0);
  const float factor = static_cast<float>(scale * 1.4426950408889634);
  emulation::launch({rows, 1}, 256, 32, [&] { softmax(x->data(), out.data(), columns / 8, factor); });
  std::vector<double> expected;
  for (int row = 0; row < rows; ++row) {
    const uint16_t *scores = x->data() + static_cast<size_t>(row) * columns;
    double largest = -INFINITY, total = 0.0;
    for (int i = 0; i < columns; ++i) {
      largest = std::max<double>(largest, value(scores[i]));
    }
    for (int i = 0; i < columns; ++i) {
      total += std::exp((value(scores[i]) - largest) * scale);
    }
    for (int i = 0; i < columns; ++i) {
      expected.push_back(std::exp((value(scores[i]) - largest) * scale) / total);
    }
  }
  compare("softmax of " + std::to_string(columns) + ", deviation " + std::to_string(static_cast<int>(deviation)), out, expected,
          1e-6);
}

} // namespace

int main() {
  // One chunk, threads without any, a full block, more chunks than threads; scores so large that one takes all.
  test_softmax(3, 8, 20.0f, 0.0f);
  test_softmax(2, 1000, 40.0f, -3000.0f);
  test_softmax(1, 2048, 20.0f, 0.0f);
  test_softmax(2, 5000, 2000.0f, 0.0f);
  std::printf("%d faults\n", faults);
  return faults == 0 ? 0 : 1;
}
