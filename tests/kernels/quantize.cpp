// Rows quantized to e4m3, on the emulated machine: bit by bit as defined.
#include "../../src/engine/kernels/quantize.cu"
#include "compare.h"

namespace {

void check(bool is_right, const std::string &what) {
  std::printf("%-7s %s\n", is_right ? "ok" : "FAULT", what.c_str());
  faults += is_right ? 0 : 1;
}

// The replacement of the instruction on older devices gives the instruction's results.
void test_conversion() {
  size_t wrong = 0, count = 0;
  const auto compare_both = [&](float of) {
    wrong += e4m3_of(of) == nearest_e4m3(of) && e4m3_of(-of) == nearest_e4m3(-of) ? 0 : 1;
    ++count;
  };
  for (uint32_t code = 0; code < 0x7f; ++code) {
    const float here = from_e4m3(code);
    wrong += e4m3_of(here) == code && e4m3_of(-here) == (code | 0x80) ? 0 : 1;
    const float middle = (here + (code < 0x7e ? from_e4m3(code + 1) : 480.0f)) / 2.0f;
    for (float of : {here, middle}) {
      compare_both(of);
      compare_both(std::nextafter(of, 0.0f));
      compare_both(std::nextafter(of, 1e9f));
    }
  }
  // Every number of bf16.
  for (uint32_t bits = 0; bits < 0x8000; ++bits) {
    compare_both(value(static_cast<uint16_t>(bits)));
  }
  std::uniform_int_distribution<uint32_t> any;
  for (int i = 0; i < 100'000; ++i) {
    compare_both(as_float(any(generator)));
  }
  check(wrong == 0, "e4m3 of " + std::to_string(count) + " floats and their negatives: " + std::to_string(wrong) + " wrong");
}

// The definition, row by row, from the numbers to be quantized.
struct Expected {
  std::vector<uint32_t> codes;
  std::vector<float> scales;

  void add(const std::vector<float> &row) {
    float largest = 0.0f;
    bool is_finite = true;
    for (float of : row) {
      is_finite = is_finite && std::isfinite(of);
      largest = std::max(largest, std::abs(of));
    }
    const float scale = !is_finite ? NAN : largest < 448.0f * 0x1p-126f ? 1.0f : largest / 448.0f;
    scales.push_back(scale);
    const float inverse = 1.0f / scale;
    for (float of : row) {
      codes.push_back(nearest_e4m3(of * inverse));
    }
  }
};

// Codes and scales in guarded memory, which holds words of two bytes.
struct Result {
  Guarded codes, scales;
  int rows, width;

  Result(int rows, int width)
      : codes(static_cast<size_t>(rows) * width / 2), scales(static_cast<size_t>(rows) * 2), rows(rows), width(width) {}
  uint8_t *code_data() { return reinterpret_cast<uint8_t *>(codes.data()); }
  float *scale_data() { return reinterpret_cast<float *>(scales.data()); }
  float value_at(int row, int column) {
    return from_e4m3(code_data()[static_cast<size_t>(row) * width + column]) * scale_data()[row];
  }

  void compare_bits(const std::string &what, const Expected &expected) {
    size_t wrong = 0;
    for (int row = 0; row < rows; ++row) {
      const float found = scale_data()[row], right = expected.scales[row];
      wrong += found == right || (std::isnan(found) && std::isnan(right)) ? 0 : 1;
      for (int column = 0; column < width; ++column) {
        const size_t at = static_cast<size_t>(row) * width + column;
        wrong += code_data()[at] == expected.codes[at] ? 0 : 1;
      }
    }
    const bool is_whole = codes.is_whole() && scales.is_whole();
    check(wrong == 0 && is_whole, what + ", " + std::to_string(rows) + " rows of " + std::to_string(width) + ": " +
                                      std::to_string(wrong) + " wrong" + (is_whole ? "" : "; wrote out of bounds"));
  }

  // For values that were computed in another order: one may be off by half a step, and by `tolerance` of its row's largest.
  void compare_values(const std::string &what, const std::vector<std::vector<double>> &expected, double tolerance) {
    double worst = 0.0;
    for (int row = 0; row < rows; ++row) {
      double largest = 0.0;
      for (double of : expected[row]) {
        largest = std::max(largest, std::abs(of));
      }
      for (int column = 0; column < width; ++column) {
        const double of = expected[row][column];
        const double half_a_step = std::max(std::abs(of) / 16.0, largest / 448.0 / 1024.0);
        worst = std::max(worst, (std::abs(value_at(row, column) - of) - half_a_step) / largest);
        worst = std::isnan(value_at(row, column)) ? INFINITY : worst;
      }
    }
    const bool is_whole = codes.is_whole() && scales.is_whole();
    char text[160];
    std::snprintf(text, sizeof text, "%s: at most %.1e of the row's largest beyond half a step%s", what.c_str(), worst,
                  is_whole ? "" : "; wrote out of bounds");
    check(worst <= tolerance && is_whole, text);
  }
};

void run_quantize(Result &result, const uint16_t *x, int stride, bool is_wide) {
  emulation::launch({result.rows, 1}, 256, 32, [&] {
    (is_wide ? quantize_wide : quantize_narrow)(x, result.code_data(), result.scale_data(), result.width, stride);
  });
}

std::vector<float> row_of(const uint16_t *values, int width) {
  std::vector<float> row;
  for (int i = 0; i < width; ++i) {
    row.push_back(value(values[i]));
  }
  return row;
}

void test_rows(int rows, int width, int stride, float deviation, bool is_wide) {
  auto x = random_values(static_cast<size_t>(rows) * stride, deviation);
  Result result(rows, width);
  run_quantize(result, x->data(), stride, is_wide);
  Expected expected;
  for (int row = 0; row < rows; ++row) {
    expected.add(row_of(x->data() + static_cast<size_t>(row) * stride, width));
  }
  result.compare_bits(is_wide ? "wide rows" : "narrow rows", expected);
}

// Special rows, of 48 values each: the first ones are given, the rest are zeros.
void test_special_rows() {
  const float largest_bf16 = value(0x7f7f), smallest_bf16 = value(0x0001);
  const std::vector<std::vector<float>> special = {
      {},
      {-0.0f, 0.0f},
      {448.0f, 447.0f, 232.0f, 17.0f, 19.0f, 0.001953125f, 0.0009765625f, 0.0029296875f, -0.00146484375f},
      {-1.0f, 0.5f},
      {largest_bf16, -largest_bf16, 1.0f},
      {smallest_bf16, -smallest_bf16},
      {0x1.8p-118f, 0x1p-118f},
      {0x1.cp-118f, -0x1p-120f},
      {0x1.ep-118f, 0x1p-126f},
      {INFINITY, 1.0f},
      {1.0f, -INFINITY},
      {1.0f, 2.0f, NAN, 3.0f},
      {-NAN},
  };
  const int width = 48;
  Guarded x(special.size() * width);
  Expected expected;
  for (size_t row = 0; row < special.size(); ++row) {
    for (size_t i = 0; i < static_cast<size_t>(width); ++i) {
      x.data()[row * width + i] = i < special[row].size() ? to_bf16(special[row][i]) : 0;
    }
    expected.add(row_of(x.data() + row * width, width));
  }
  Result result(static_cast<int>(special.size()), width);
  run_quantize(result, x.data(), width, false);
  result.compare_bits("special rows", expected);
  bool is_finite = true, is_none = true;
  for (int row = 0; row < result.rows; ++row) {
    for (int column = 0; column < width; ++column) {
      (row < 9 ? is_finite : is_none) &= std::isfinite(result.value_at(row, column)) == (row < 9);
    }
  }
  check(is_finite, "finite rows stay finite");
  check(is_none, "a row with a value that is not finite becomes NaN");
  check(result.value_at(4, 0) > 3e38f && result.value_at(4, 2) == 0.0f, "the largest number does not overflow");
}

// A row's codes do not depend on the other rows.
void test_alone() {
  const int rows = 5, width = 208;
  auto x = random_values(static_cast<size_t>(rows) * width, 3.0f);
  Result together(rows, width), alone(1, width);
  run_quantize(together, x->data(), width, true);
  run_quantize(alone, x->data() + 3 * width, width, true);
  check(std::memcmp(together.code_data() + 3 * width, alone.code_data(), width) == 0 &&
            together.scale_data()[3] == alone.scale_data()[0],
        "a row has the same bits unbatched");
}

double gelu(double x) { return 0.5 * x * (1.0 + std::tanh(std::sqrt(2.0 / M_PI) * (x + 0.044715 * x * x * x))); }

void test_gelu(int left_width, int right_width, int rows, bool is_biased) {
  const int left_stride = left_width + 24, right_stride = right_width + 8;
  auto left = random_values(static_cast<size_t>(rows) * left_stride, 1.0f);
  auto right = random_values(static_cast<size_t>(rows) * right_stride, 4.0f);
  auto bias = random_values(right_width, is_biased ? 2.0f : 0.0f);
  Result result(rows, left_width + right_width);
  emulation::launch({rows, 1}, 256, 32, [&] {
    quantize_beside_gelu_tanh(left->data(), right->data(), is_biased ? bias->data() : nullptr, result.code_data(),
                              result.scale_data(), left_width, right_width, left_stride, right_stride);
  });
  std::vector<std::vector<double>> expected(rows);
  for (int row = 0; row < rows; ++row) {
    for (int i = 0; i < left_width; ++i) {
      expected[row].push_back(value(left->data()[row * left_stride + i]));
    }
    for (int i = 0; i < right_width; ++i) {
      expected[row].push_back(gelu(static_cast<double>(value(right->data()[row * right_stride + i])) + value(bias->data()[i])));
    }
  }
  result.compare_values("GELU, " + std::to_string(left_width) + " | " + std::to_string(right_width), expected, 1e-5);
}

void test_layer_norm(int width, const std::vector<int> &lengths, float deviation, float mean) {
  const Bounds bounds = bounds_from<Bounds>(lengths);
  const int rows = bounds.at[bounds.count];
  const int stride = 3 * width;
  auto x = random_values(static_cast<size_t>(rows) * width, deviation, mean);
  auto modulation = random_values(static_cast<size_t>(bounds.count) * stride, 0.5f);
  const uint16_t *shift = modulation->data(), *scale = modulation->data() + width;
  Result result(rows, width);
  emulation::launch({rows, 1}, 256, 32, [&] {
    quantize_modulated_layer_norm(x->data(), shift, scale, result.code_data(), result.scale_data(), bounds, width, stride,
                                  stride, 1e-6f);
  });
  std::vector<std::vector<double>> expected(rows);
  for (int row = 0; row < rows; ++row) {
    const int sequence = sequence_of(bounds, row);
    const uint16_t *values = x->data() + static_cast<size_t>(row) * width;
    double average = 0.0, variance = 0.0;
    for (int i = 0; i < width; ++i) {
      average += value(values[i]) / static_cast<double>(width);
    }
    for (int i = 0; i < width; ++i) {
      variance += (value(values[i]) - average) * (value(values[i]) - average) / width;
    }
    for (int i = 0; i < width; ++i) {
      const double normed = (value(values[i]) - average) / std::sqrt(variance + 1e-6);
      expected[row].push_back(normed * (1.0 + value(scale[sequence * stride + i])) + value(shift[sequence * stride + i]));
    }
  }
  result.compare_values("layer norm, width " + std::to_string(width), expected, 1e-4);
}

} // namespace

int main() {
  test_conversion();
  for (int width : {16, 48, 208, 3072, 4096}) {
    test_rows(7, width, width, 2.0f, false);
  }
  test_rows(3, 64, 200, 1e-20f, false);
  for (int width : {16, 4112, 12288, 15360, 16384}) {
    test_rows(2, width, width + 8, 1e10f, true);
  }
  test_special_rows();
  test_alone();
  test_gelu(0, 48, 5, false);
  test_gelu(3072, 12288, 2, true);
  test_gelu(16, 16, 9, true);
  for (int width : {16, 144, 3072, 4096}) {
    test_layer_norm(width, {5, 1, 6}, 2.0f, 0.0f);
  }
  test_layer_norm(3072, {2, 3}, 100.0f, 1000.0f);
  std::printf("%d faults\n", faults);
  return faults == 0 ? 0 : 1;
}
