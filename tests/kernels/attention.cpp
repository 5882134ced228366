// Attention on the emulated machine.
#include "../../src/engine/kernels/attention.cu"
#include "attention.h"

int main() {
  const auto launch = [](int width, Attention kernel) {
    return Launch{"attention", kernel, width, static_cast<size_t>(512 * width)};
  };
  // Odd lengths, tails, one key, a full block, several blocks; scores so large that one weight takes all.
  const Launch tall{"tall attention", attention_tall_128, 128, 512 * 128, 128};
  for (const Launch &one : {launch(16, attention_16), launch(32, attention_32), launch(64, attention_64),
                            launch(128, attention_128), tall}) {
    test_attention(one, 2, {1, 127, 200, 64}, 1.0f, 4e-3);
    test_neighbours(one, 77);
  }
  test_attention(launch(128, attention_128), 1, {128, 129, 300}, 6.0f, 2e-2);
  test_attention(tall, 1, {128, 129, 300}, 6.0f, 2e-2);
  test_attention(tall, 1, {65}, 40.0f, 2e-1);
  test_attention(launch(64, attention_64), 3, {65}, 40.0f, 2e-1);
  std::printf("%d faults\n", faults);
  return faults == 0 ? 0 : 1;
}
