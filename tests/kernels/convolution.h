// Shared by the tests of the convolution kernels, on the emulated machine.
#pragma once

#include "compare.h"

namespace {

using Kernel = void (*)(const uint16_t *, const uint16_t *, const uint16_t *, const uint16_t *, uint16_t *, int, int, int,
                        int);

struct Case {
  int height, width, inputs, outputs;
  float deviation = 1.0f;
  bool has_residual = false;
};

// An image's channel, or the zeros around it.
double at(const uint16_t *x, const Case &of, int row, int column, int channel) {
  const bool is_there = row >= 0 && row < of.height && column >= 0 && column < of.width;
  return is_there ? value(x[(static_cast<size_t>(row) * of.width + column) * of.inputs + channel]) : 0.0;
}

std::string words(const char *what, const Case &of) {
  return std::string(what) + ", " + std::to_string(of.inputs) + " to " + std::to_string(of.outputs) + ", " +
         std::to_string(of.height) + "x" + std::to_string(of.width) + (of.has_residual ? ", residual" : "");
}

int tiles(const Case &of) { return (of.height + 15) / 16 * ((of.width + 15) / 16); }

// A kernel's shared memory: channels in a step, and bytes for alignment.
struct Machine {
  int step, alignment;

  int shared_bytes(int kernel, int outputs) const {
    return 2 * 2 * step * (15 + kernel) * (15 + kernel) + (4 * 2 * step + 2) * outputs + alignment;
  }
};

void test_convolution(const char *what, Kernel kernel, const Machine &machine, int outputs_of_block, const Case &of) {
  auto x = random_values(static_cast<size_t>(of.height) * of.width * of.inputs, of.deviation);
  auto weight = random_values(static_cast<size_t>(of.outputs) * 9 * of.inputs, 1.0f / std::sqrt(9.0f * of.inputs));
  auto bias = random_values(of.outputs, 1.0f);
  const size_t count = static_cast<size_t>(of.height) * of.width * of.outputs;
  auto residual = random_values(count, of.deviation);
  Guarded out(count);
  const int blocks = tiles(of) * ((of.outputs + outputs_of_block - 1) / outputs_of_block);
  emulation::launch({blocks, 1}, 256, machine.shared_bytes(3, outputs_of_block), [&] {
    kernel(x->data(), weight->data(), bias->data(), of.has_residual ? residual->data() : nullptr, out.data(), of.height,
           of.width, of.inputs, of.outputs);
  });
  std::vector<double> expected;
  for (int row = 0; row < of.height; ++row) {
    for (int column = 0; column < of.width; ++column) {
      for (int output = 0; output < of.outputs; ++output) {
        double sum = value(bias->data()[output]);
        for (int tap = 0; tap < 9; ++tap) {
          for (int input = 0; input < of.inputs; ++input) {
            sum += at(x->data(), of, row + tap / 3 - 1, column + tap % 3 - 1, input) *
                   value(weight->data()[(output * 9 + tap) * of.inputs + input]);
          }
        }
        expected.push_back(sum + (of.has_residual ? value(residual->data()[expected.size()]) : 0.0));
      }
    }
  }
  compare(words(what, of), out, expected, 1e-4 * of.deviation);
}

void test_doubled(Kernel kernel, const Machine &machine, const Case &of) {
  auto x = random_values(static_cast<size_t>(of.height) * of.width * of.inputs, of.deviation);
  // Small multiples of 1/8: their sums are exact in bf16.
  auto weight = random_values(static_cast<size_t>(of.outputs) * 9 * of.inputs, 1.0f);
  for (size_t i = 0; i < static_cast<size_t>(of.outputs) * 9 * of.inputs; ++i) {
    weight->data()[i] = to_bf16(std::round(value(weight->data()[i]) * 8.0f) / 8.0f);
  }
  const auto nine = [&](int output, int row, int column, int input) {
    return value(weight->data()[(output * 9 + row * 3 + column) * of.inputs + input]);
  };
  // Taps of the small image: which of the nine belong to the first and which to the second row or column.
  Guarded summed(static_cast<size_t>(4) * of.outputs * 4 * of.inputs);
  for (int kind = 0; kind < 4; ++kind) {
    for (int output = 0; output < of.outputs; ++output) {
      for (int tap = 0; tap < 4; ++tap) {
        for (int input = 0; input < of.inputs; ++input) {
          float sum = 0.0f;
          for (int row = 0; row < 3; ++row) {
            for (int column = 0; column < 3; ++column) {
              const bool is_here = (row + 1 - kind / 2) / 2 == tap / 2 && (column + 1 - kind % 2) / 2 == tap % 2;
              sum += is_here ? nine(output, row, column, input) : 0.0f;
            }
          }
          summed.data()[((kind * of.outputs + output) * 4 + tap) * of.inputs + input] = to_bf16(sum);
        }
      }
    }
  }
  auto bias = random_values(of.outputs, 1.0f);
  Guarded out(static_cast<size_t>(4) * of.height * of.width * of.outputs);
  emulation::launch({tiles(of) * 4 * ((of.outputs + 127) / 128), 1}, 256, machine.shared_bytes(2, 128), [&] {
    kernel(x->data(), summed.data(), bias->data(), nullptr, out.data(), of.height, of.width, of.inputs, of.outputs);
  });
  std::vector<double> expected;
  for (int row = 0; row < 2 * of.height; ++row) {
    for (int column = 0; column < 2 * of.width; ++column) {
      for (int output = 0; output < of.outputs; ++output) {
        double sum = value(bias->data()[output]);
        for (int tap = 0; tap < 9; ++tap) {
          // Halves, rounded down: pixels just outside stay outside.
          const int from_row = (row + tap / 3 - 1 + 2) / 2 - 1;
          const int from_column = (column + tap % 3 - 1 + 2) / 2 - 1;
          for (int input = 0; input < of.inputs; ++input) {
            sum += at(x->data(), of, from_row, from_column, input) * nine(output, tap / 3, tap % 3, input);
          }
        }
        expected.push_back(sum);
      }
    }
  }
  compare(words("doubled", of), out, expected, 1e-3 * of.deviation);
}

} // namespace
