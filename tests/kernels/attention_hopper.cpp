// Attention by the matrix instructions of a warpgroup, on the emulated machine.
#include "../../src/engine/kernels/attention_hopper.cu"
#include "attention.h"

namespace {

constexpr size_t SHARED = 161 * 1024;

// In every turn the first warpgroup starts its scores before the second, whichever warps run first.
void test_order(int length) {
  const Launch launch{"ordered", attention_hopper_ordered_128, 128, SHARED};
  auto qkv = random_values(static_cast<size_t>(length) * 3 * 128, 1.0f);
  Guarded out(static_cast<size_t>(length) * 128);
  emulation::started_sums.clear();
  launch.run(qkv->data(), out.data(), bounds_of({length}), 1, 128);
  const std::vector<int> &warps = emulation::started_sums;
  const size_t blocks = (length + 127) / 128;
  bool is_right = warps.size() == 8 * blocks * blocks;
  for (size_t i = 0; i < warps.size(); ++i) {
    is_right = is_right && warps[i] / 4 == static_cast<int>(i / 4 % 2);
  }
  std::printf("%-7s %zu scores are started by one group after the other\n", is_right ? "ok" : "FAULT", warps.size());
  faults += is_right ? 0 : 1;
}

// Both kernels give the same bits.
void test_same(const Launch &one, const Launch &other, const std::vector<int> &lengths) {
  const Bounds bounds = bounds_of(lengths);
  const size_t count = static_cast<size_t>(bounds.at[bounds.count]) * 128;
  auto qkv = random_values(3 * count, 1.0f);
  Guarded first(count), second(count);
  one.run(qkv->data(), first.data(), bounds, 1, 128);
  other.run(qkv->data(), second.data(), bounds, 1, 128);
  const bool is_right = std::memcmp(first.data(), second.data(), count * sizeof(uint16_t)) == 0;
  std::printf("%-7s %s and %s give the same bits\n", is_right ? "ok" : "FAULT", one.name.c_str(), other.name.c_str());
  faults += is_right ? 0 : 1;
}

} // namespace

int main() {
  const Launch plain{"attention by warpgroups", attention_hopper_128, 128, SHARED};
  const Launch ordered{"attention by ordered warpgroups", attention_hopper_ordered_128, 128, SHARED};
  for (const Launch &launch : {plain, ordered}) {
    // One tile of keys and several; tails, one key, full tiles; scores so large that one weight takes all.
    test_attention(launch, 2, {1, 127, 200, 64}, 1.0f, 4e-3);
    test_attention(launch, 1, {128, 129, 300}, 6.0f, 2e-2);
    test_attention(launch, 1, {641, 3, 512}, 1.0f, 4e-3);
    test_attention(launch, 3, {65}, 40.0f, 2e-1);
    for (int length : {1, 77, 128, 250}) {
      test_neighbours(launch, length);
    }
  }
  test_order(300);
  test_same(plain, ordered, {300, 77});
  std::printf("%d faults\n", faults);
  return faults == 0 ? 0 : 1;
}
