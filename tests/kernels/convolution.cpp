// Convolutions on the emulated machine.
#include "../../src/engine/kernels/convolution.cu"
#include "convolution.h"

int main() {
  const Machine machine = {STEP, 0};
  // One pixel, tails of tiles, of steps and of blocks of outputs; one step, two, three and more; large values.
  test_convolution("convolution", convolution, machine, 128, {1, 1, 8, 8});
  test_convolution("convolution", convolution, machine, 128, {5, 33, 16, 136});
  test_convolution("convolution", convolution, machine, 128, {17, 16, 40, 48, 1.0f, true});
  test_convolution("convolution", convolution, machine, 128, {16, 19, 96, 128, 1.0f, true});
  test_convolution("convolution", convolution, machine, 128, {3, 7, 128, 264, 300.0f, true});
  test_convolution("narrow", convolution_narrow, machine, 16, {1, 1, 8, 8});
  test_convolution("narrow", convolution_narrow, machine, 16, {18, 17, 128, 8});
  test_convolution("narrow", convolution_narrow, machine, 16, {4, 20, 72, 24, 1.0f, true});
  test_doubled(convolution_doubled, machine, {1, 1, 8, 8});
  test_doubled(convolution_doubled, machine, {5, 17, 48, 48});
  test_doubled(convolution_doubled, machine, {16, 3, 32, 136});
  test_doubled(convolution_doubled, machine, {7, 7, 160, 16, 30.0f});
  std::printf("%d faults\n", faults);
  return faults == 0 ? 0 : 1;
}
