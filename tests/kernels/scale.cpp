// Rows and columns scaled in place, on the emulated machine.
#include "../../src/engine/kernels/scale.cu"
#include "compare.h"

namespace {

void test_scale(int rows, int columns) {
  const size_t count = static_cast<size_t>(rows) * columns;
  // Products of codes are large, their scales small.
  auto x = random_values(count, 1e6f);
  std::uniform_real_distribution<float> scale(1e-4f, 1e-2f);
  std::vector<float> row_scales;
  for (int row = 0; row < rows; ++row) {
    row_scales.push_back(scale(generator));
  }
  // Aligned to 16 bytes: floats in guarded memory of words of two.
  Guarded held(static_cast<size_t>(columns) * 2);
  float *column_scales = reinterpret_cast<float *>(held.data());
  std::generate_n(column_scales, columns, [&] { return scale(generator); });
  std::vector<double> expected;
  for (int row = 0; row < rows; ++row) {
    for (int column = 0; column < columns; ++column) {
      const double of = value(x->data()[static_cast<size_t>(row) * columns + column]);
      expected.push_back(of * row_scales[row] * column_scales[column]);
    }
  }
  emulation::launch({rows, 1}, 256, 0,
                    [&] { scale_rows_and_columns(x->data(), row_scales.data(), column_scales, columns); });
  compare("scaled, " + std::to_string(rows) + " rows of " + std::to_string(columns), *x, expected, 1e-6);
}

// A row that cannot be represented has NaN for a scale: all of it becomes NaN, and no other row.
void test_row_of_nan() {
  constexpr int COLUMNS = 16;
  auto x = random_values(3 * COLUMNS, 1.0f);
  const std::vector<float> row_scales = {1.0f, NAN, 1.0f};
  alignas(16) float column_scales[COLUMNS];
  std::fill_n(column_scales, COLUMNS, 1.0f);
  emulation::launch({3, 1}, 256, 0,
                    [&] { scale_rows_and_columns(x->data(), row_scales.data(), column_scales, COLUMNS); });
  int wrong = 0;
  for (int i = 0; i < 3 * COLUMNS; ++i) {
    wrong += std::isnan(value(x->data()[i])) == (i / COLUMNS == 1) ? 0 : 1;
  }
  std::printf("%-7s a row of NaN: %d wrong\n", wrong == 0 ? "ok" : "FAULT", wrong);
  faults += wrong == 0 ? 0 : 1;
}

} // namespace

int main() {
  // One chunk, threads without any, more chunks than threads.
  test_scale(3, 8);
  test_scale(2, 1000);
  test_scale(5, 3072);
  test_row_of_nan();
  std::printf("%d faults\n", faults);
  return faults == 0 ? 0 : 1;
}
