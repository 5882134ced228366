// Shared by the tests of the CUDA kernels: random operands in memory with guards around it, and the comparison with the
// plainest computation. `scripts/kernels-test.sh` compiles and runs them.
#pragma once

#include "emulation.h"

#include <random>
#include <string>

using Values = std::vector<uint16_t>;

inline int faults = 0;
inline std::mt19937 generator(7);

inline float value(uint16_t bits) { return as_float(static_cast<uint32_t>(bits) << 16); }

// Memory aligned to 16 bytes, with a strip before and behind that must stay unchanged.
class Guarded {
public:
  explicit Guarded(size_t count) : memory_(count + 2 * STRIP, MARK) {
    while (reinterpret_cast<uintptr_t>(memory_.data() + start_) % 16 != 0 || start_ < STRIP / 2) {
      ++start_;
    }
    count_ = count;
  }
  uint16_t *data() { return memory_.data() + start_; }
  // Whether the strips are unchanged.
  static bool is_mark(uint16_t word) { return word == MARK; }
  bool is_whole() const {
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

inline std::shared_ptr<Guarded> random_values(size_t count, float deviation, float mean = 0.0f) {
  std::normal_distribution<float> normal(mean, deviation);
  auto values = std::make_shared<Guarded>(count);
  for (size_t i = 0; i < count; ++i) {
    values->data()[i] = to_bf16(normal(generator));
  }
  return values;
}

template <class Bounds> Bounds bounds_from(const std::vector<int> &lengths) {
  Bounds bounds{};
  for (int length : lengths) {
    bounds.at[bounds.count + 1] = bounds.at[bounds.count] + length;
    ++bounds.count;
  }
  return bounds;
}

// `actual` may differ by half a unit in the last place of bf16, and by `tolerance`.
inline void compare(const std::string &what, Guarded &actual, const std::vector<double> &expected, double tolerance) {
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
              expected.size(), actual.is_whole() ? "" : "; wrote out of bounds");
  faults += is_right ? 0 : 1;
}
