// Matrix instructions of a warpgroup on the emulated machine, as in the PTX manual ("Asynchronous Warpgroup Level Matrix
// Multiply-Accumulate Operation using wgmma.mma_async instruction"). Their asynchronous work is done as late as the program
// allows, so that a missing wait is detected:
//
// - An instruction reads shared memory through the asynchronous proxy, and its operands there must be the same when it is
//   started and when it has been waited for. The proxy sees a copy after `publish_copies` of the thread that made it.
// - The registers of a sum are NaN from the instruction's start until it has been waited for, and must not be written. Those
//   of a left operand are read at the very end.
// - `order_registers` must come between the last change of registers and an instruction that uses them.
#pragma once

#include "emulation.h"

#include <array>

namespace emulation {

// Where shared memory begins, in its own addresses: not aligned for a tile.
constexpr uint32_t SHARED_START = 1024 + 16;

constexpr int LEFT_ROWS = 64, RIGHT_COLUMNS = 128, DEPTH = 16;

// What an instruction has read from shared memory: `left [row][k]`, where it is there, and `right [column][k]`.
struct Operands {
  std::vector<uint16_t> left, right;
  bool operator==(const Operands &other) const { return left == other.left && right == other.right; }
};

struct Product {
  float *sum;
  // Four registers, or `a`.
  const uint32_t *left;
  uint64_t a, b;
  bool is_right_transposed, accumulates;
  std::shared_ptr<Operands> seen;
};

// A pending sum: the future contents of its registers.
struct Sum {
  std::array<float, 64> values;
  int products_left = 0;
};

struct Products {
  std::deque<std::vector<Product>> groups;
  std::vector<Product> open_group;
  std::map<float *, Sum> sums;
  bool is_ordered = false;
  // Registers as they were when they were ordered.
  std::map<const void *, std::vector<uint32_t>> ordered;
  // Descriptors of all instructions so far: the same in all warps of a warpgroup.
  std::vector<std::array<uint64_t, 2>> started;

  ~Products() {
    if (!groups.empty() || !open_group.empty()) {
      std::fprintf(stderr, "a thread ended before its matrix instructions\n");
      std::abort();
    }
  }
};

// Warps that started a sum, rather than adding to one, in this order.
inline std::vector<int> started_sums;

inline Products &products() {
  std::shared_ptr<Products> &mine = block->fibres[block->current].products;
  if (!mine) {
    mine = std::make_shared<Products>();
  }
  return *mine;
}

inline float no_number() {
  const uint32_t bits = 0x7fc0dead;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline bool is_untouched(const float *sum) {
  const float mark = no_number();
  return std::all_of(sum, sum + 64, [&](const float &value) { return std::memcmp(&value, &mark, sizeof mark) == 0; });
}

// One bf16 through the asynchronous proxy: bits 4 to 6 of its address are swizzled by bits 7 to 9.
inline uint16_t published_at(uint32_t address) {
  const uint32_t at = (address ^ (address >> 3 & 0x70)) - SHARED_START;
  if (at + 2 > block->published.size()) {
    refuse("a matrix instruction reads outside of shared memory");
  }
  uint16_t value;
  std::memcpy(&value, block->published.data() + at, sizeof value);
  return value;
}

// `lines` × DEPTH values behind a descriptor; `is_transposed`: those of one line do not follow each other in memory.
inline std::vector<uint16_t> matrix_behind(uint64_t descriptor, int lines, bool is_transposed) {
  const uint32_t start = (descriptor & 0x3fff) << 4;
  const uint32_t leading = (descriptor >> 16 & 0x3fff) << 4;
  const uint32_t stride = (descriptor >> 32 & 0x3fff) << 4;
  if (descriptor >> 62 != 1 || (descriptor >> 49 & 7) != 0) {
    refuse("only matrices with a swizzle of 128 bytes and no base offset are supported");
  }
  if ((start & 0x380) != 0) {
    refuse("a matrix is not aligned to 1024 bytes");
  }
  std::vector<uint16_t> values(lines * DEPTH);
  for (int line = 0; line < lines; ++line) {
    for (int k = 0; k < DEPTH; ++k) {
      const uint32_t at = is_transposed ? line / 64 * leading + line % 64 * 2 + k / 8 * stride + k % 8 * 128
                                        : line / 8 * stride + line % 8 * 128 + k * 2;
      values[line * DEPTH + k] = published_at(start + at);
    }
  }
  return values;
}

inline Operands operands_of(const Product &product) {
  return {product.left == nullptr ? matrix_behind(product.a, LEFT_ROWS, false) : std::vector<uint16_t>(),
          matrix_behind(product.b, RIGHT_COLUMNS, product.is_right_transposed)};
}

// Whether registers are as they were when they were last ordered.
inline bool is_as_ordered(const void *registers, size_t count) {
  for (const auto &[first, words] : products().ordered) {
    const size_t at = static_cast<const uint32_t *>(registers) - static_cast<const uint32_t *>(first);
    if (registers >= first && at + count <= words.size()) {
      return std::memcmp(words.data() + at, registers, count * sizeof(uint32_t)) == 0;
    }
  }
  return false;
}

inline void start(Product product) {
  Products &mine = products();
  if (!mine.is_ordered) {
    refuse("the registers of a matrix instruction were not ordered");
  }
  if (product.left != nullptr && !is_as_ordered(product.left, 4)) {
    refuse("a left operand was changed after registers were ordered");
  }
  Sum &sum = mine.sums[product.sum];
  if (sum.products_left > 0) {
    if (!product.accumulates || !is_untouched(product.sum)) {
      refuse("the registers of an unfinished sum were written");
    }
  } else if (product.accumulates) {
    if (!is_as_ordered(product.sum, 64)) {
      refuse("a sum was changed after registers were ordered");
    }
    std::copy(product.sum, product.sum + 64, sum.values.begin());
  }
  ++sum.products_left;
  std::fill(product.sum, product.sum + 64, no_number());
  // All warps of a warpgroup start the same instructions.
  mine.started.push_back({product.a, product.b});
  const size_t turn = mine.started.size() - 1;
  for (int warp = 0; warp < 4; ++warp) {
    const auto &other = block->fibres[block->current / 128 * 128 + warp * WARP].products;
    if (other && other->started.size() > turn && other->started[turn] != mine.started[turn]) {
      refuse("the warps of a warpgroup start different instructions");
    }
  }
  // One lane reads for its warp.
  if (lane() == 0) {
    if (!product.accumulates) {
      started_sums.push_back(block->current / WARP);
    }
    product.seen = std::make_shared<Operands>(operands_of(product));
    exchange().addresses[0] = &product.seen;
  }
  wait_for_warp();
  product.seen = *static_cast<const std::shared_ptr<Operands> *>(exchange().addresses[0]);
  wait_for_warp();
  mine.open_group.push_back(product);
}

inline void finish(const Product &product) {
  Exchange &warp = exchange();
  if (lane() == 0 && !(operands_of(product) == *product.seen)) {
    refuse("shared memory changed while a matrix instruction was reading it");
  }
  if (product.left != nullptr) {
    std::copy(product.left, product.left + 4, warp.words[lane()]);
  }
  wait_for_warp();
  const int first_row = block->current / WARP % 4 * 16;
  // PTX ISA, "Register Fragments for wgmma.mma_async.m64nNk16".
  const auto left = [&](int row, int k) {
    if (product.left == nullptr) {
      return product.seen->left[(first_row + row) * DEPTH + k];
    }
    const uint32_t pair = warp.words[row % 8 * 4 + k % 8 / 2][row / 8 + k / 8 * 2];
    return static_cast<uint16_t>(k % 2 == 0 ? pair : pair >> 16);
  };
  const auto number = [](uint16_t bits) {
    const uint32_t word = static_cast<uint32_t>(bits) << 16;
    float value;
    std::memcpy(&value, &word, sizeof value);
    return value;
  };
  Sum &sum = products().sums[product.sum];
  for (int half = 0; half < 2; ++half) {
    float row[DEPTH];
    for (int k = 0; k < DEPTH; ++k) {
      row[k] = number(left(lane() / 4 + 8 * half, k));
    }
    for (int i = 2 * half; i < 64; i += i % 2 == 0 ? 1 : 3) {
      const uint16_t *column = product.seen->right.data() + (i / 4 * 8 + lane() % 4 * 2 + i % 2) * DEPTH;
      float value = product.accumulates ? sum.values[i] : 0.0f;
      for (int k = 0; k < DEPTH; ++k) {
        value += row[k] * number(column[k]);
      }
      sum.values[i] = value;
    }
  }
  wait_for_warp();
  if (--sum.products_left == 0) {
    if (!is_untouched(product.sum)) {
      refuse("the registers of an unfinished sum were written");
    }
    std::copy(sum.values.begin(), sum.values.end(), product.sum);
  }
}

template <int LEFT> void wait_for_groups_of_products() {
  Products &mine = products();
  for (; mine.groups.size() > LEFT; mine.groups.pop_front()) {
    for (const Product &product : mine.groups.front()) {
      finish(product);
    }
  }
  // From here on the program may change registers.
  mine.is_ordered = false;
  mine.ordered.clear();
}

// And a sum that the program reads.
template <int LEFT> void wait_for_sum(float *sum) {
  wait_for_groups_of_products<LEFT>();
  if (products().sums[sum].products_left > 0) {
    refuse("a sum is used before its instructions have been waited for");
  }
}

} // namespace emulation

inline uint32_t shared_address(const void *pointer) {
  const auto *byte = static_cast<const unsigned char *>(pointer);
  return emulation::SHARED_START + static_cast<uint32_t>(byte - emulation::block->shared.data());
}

template <int BARRIER, int THREADS> void arrive_at() { emulation::come_to(BARRIER, THREADS, false); }
template <int BARRIER, int THREADS> void wait_at() { emulation::come_to(BARRIER, THREADS, true); }

inline int same_in_warp(int number) {
  emulation::Exchange &warp = emulation::exchange();
  warp.words[emulation::lane()][0] = static_cast<uint32_t>(number);
  emulation::wait_for_warp();
  const int first = static_cast<int>(warp.words[0][0]);
  emulation::wait_for_warp();
  return first;
}

inline void publish_copies() {
  emulation::Block &block = *emulation::block;
  for (const emulation::Copy &copy : this_fibre().arrived) {
    const auto at = static_cast<unsigned char *>(copy.target) - block.shared.data();
    std::memcpy(block.published.data() + at, copy.source, 16);
  }
  this_fibre().arrived.clear();
}

inline void order_registers() { emulation::products().is_ordered = true; }

inline void order_registers(uint32_t (&left)[8][4]) {
  order_registers();
  emulation::products().ordered[left] = std::vector<uint32_t>(&left[0][0], &left[0][0] + 32);
}

inline void order_registers(float (&sum)[64], uint32_t (&left)[8][4]) {
  order_registers(left);
  std::vector<uint32_t> words(64);
  std::memcpy(words.data(), sum, sizeof sum);
  emulation::products().ordered[sum] = words;
}

inline void multiply_panels(float (&sum)[64], uint64_t a, uint64_t b) {
  emulation::start({sum, nullptr, a, b, false, false, nullptr});
}
inline void multiply_add_panels(float (&sum)[64], uint64_t a, uint64_t b) {
  emulation::start({sum, nullptr, a, b, false, true, nullptr});
}
inline void multiply_add_rows(float (&sum)[64], const uint32_t (&a)[4], uint64_t b) {
  emulation::start({sum, a, 0, b, true, true, nullptr});
}

inline void multiply_add_rows_by_rows(float (&sum)[64], const uint32_t (&a)[4], uint64_t b) {
  emulation::start({sum, a, 0, b, false, true, nullptr});
}

inline void end_products() {
  auto &products = emulation::products();
  products.groups.push_back(std::move(products.open_group));
  products.open_group.clear();
}

template <int LEFT> void wait_for_products(float (&sum)[64]) { emulation::wait_for_sum<LEFT>(sum); }
template <int LEFT> void wait_for_products(float (&sum)[64], uint32_t (&)[8][4]) { emulation::wait_for_sum<LEFT>(sum); }
template <int LEFT> void wait_for_products(uint32_t (&)[8][4]) { emulation::wait_for_groups_of_products<LEFT>(); }
