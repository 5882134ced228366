// Convolutions by the matrix instructions of a warpgroup, on the emulated machine.
#include "../../src/engine/kernels/convolution_hopper.cu"
#include "convolution.h"

int main() {
  const Machine machine = {STEP, 1024};
  // As for the other kernels, except that steps are twice as long.
  test_convolution("hopper", convolution_hopper, machine, 128, {1, 1, 8, 8});
  test_convolution("hopper", convolution_hopper, machine, 128, {5, 33, 16, 136});
  test_convolution("hopper", convolution_hopper, machine, 128, {17, 16, 72, 48, 1.0f, true});
  test_convolution("hopper", convolution_hopper, machine, 128, {16, 19, 192, 128, 1.0f, true});
  test_convolution("hopper", convolution_hopper, machine, 128, {3, 7, 256, 264, 300.0f, true});
  test_doubled(convolution_hopper_doubled, machine, {1, 1, 8, 8});
  test_doubled(convolution_hopper_doubled, machine, {5, 17, 48, 48});
  test_doubled(convolution_hopper_doubled, machine, {16, 3, 64, 136});
  test_doubled(convolution_hopper_doubled, machine, {7, 7, 320, 16, 30.0f});
  std::printf("%d faults\n", faults);
  return faults == 0 ? 0 : 1;
}
