// Attention by the matrix instructions of a warpgroup, on the emulated machine.
#include "../../src/engine/kernels/attention_hopper.cu"
#include "attention.h"

int main() {
  const Launch launch{"attention by warpgroups", attention_hopper_128, 128, 161 * 1024};
  // One tile of keys and several; tails, one key, full tiles; scores so large that one weight takes all.
  test_attention(launch, 2, {1, 127, 200, 64}, 1.0f, 4e-3);
  test_attention(launch, 1, {128, 129, 300}, 6.0f, 2e-2);
  test_attention(launch, 1, {641, 3, 512}, 1.0f, 4e-3);
  test_attention(launch, 3, {65}, 40.0f, 2e-1);
  for (int length : {1, 77, 128, 250}) {
    test_neighbours(launch, length);
  }
  std::printf("%d faults\n", faults);
  return faults == 0 ? 0 : 1;
}
