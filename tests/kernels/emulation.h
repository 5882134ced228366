// CUDA's machine model in plain C++, as far as our kernels use it: each thread of a block is a fiber, and a thread that
// reaches a barrier lets the others run. A warp runs as far as it can before the next one, except that it pauses at
// __syncwarp: a kernel that relies on the others' pace fails. Warp-wide instructions do, lane by lane, what the PTX manual
// says. Slow, and exact enough to find every mistake that is not one of timing.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <ucontext.h>
#include <vector>

#define __device__
#define __forceinline__ inline
#define __global__
#define __launch_bounds__(...)
#define SHARED_BYTES(name) unsigned char *name = emulation::block->shared.data()

struct uint4 {
  uint32_t x, y, z, w;
};
struct float4 {
  float x, y, z, w;
};
struct float2 {
  float x, y;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }

namespace emulation {

struct Index {
  int x, y;
};

constexpr int WARP = 32;
constexpr size_t STACK_BYTES = 64 * 1024;

// The operands that a warp's lanes share in one instruction.
struct Exchange {
  const void *addresses[WARP];
  uint32_t words[WARP][6];
  float values[WARP];
};

// A pending copy of sixteen bytes. A copy that was not waited for is not done.
struct Copy {
  void *target;
  const void *source;
};

// The asynchronous state of a warpgroup's matrix instructions: warpgroup.h.
struct Products;

struct Fibre {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  bool is_done = false;
  // Closed groups of copies, the oldest first, and the open one.
  std::deque<std::vector<Copy>> groups;
  std::vector<Copy> open_group;
  // Copies that are done, but not yet visible to matrix instructions of a warpgroup.
  std::vector<Copy> arrived;
  std::shared_ptr<Products> products;

  void prepare(void (*enter)()) {
    stack.reset(new char[STACK_BYTES]);
    getcontext(&context);
    context.uc_stack.ss_sp = stack.get();
    context.uc_stack.ss_size = STACK_BYTES;
    context.uc_link = nullptr;
    makecontext(&context, enter, 0);
  }
};

// One of a block's sixteen barriers. A warp comes to it as a whole.
struct Barrier {
  // Of the phase that is not complete: who has come, and how many must.
  std::vector<int> threads;
  int expected = 0;
  // Phases that are complete.
  long opened = 0;
};
constexpr int BARRIERS = 16;

struct Block {
  Index index;
  // Shared memory, and the view of the asynchronous proxy, through which a warpgroup's instructions read.
  std::vector<unsigned char> shared, published;
  std::vector<Fibre> fibres;
  std::vector<Exchange> exchanges;
  // Barriers passed by each thread, of its block and of its warp.
  std::vector<long> block_barriers, warp_barriers;
  // Numbered barriers; that of __syncthreads is number 0, and apart.
  Barrier barriers[BARRIERS];
  // How often any thread has passed a barrier, or ended.
  long passed = 0;
  // Whether the warp that runs must let the others run.
  bool is_paused = false;
  ucontext_t scheduler;
  int current = 0;
  std::function<void()> body;
};

inline Block *block = nullptr;

inline void yield() { swapcontext(&block->fibres[block->current].context, &block->scheduler); }

// Waits until all threads of [first, last) have reached this point.
inline void wait(std::vector<long> &passed, int first, int last) {
  const long mine = ++passed[block->current];
  const int self = block->current;
  for (;;) {
    bool all = true;
    for (int other = first; other < last; ++other) {
      if (passed[other] < mine && block->fibres[other].is_done) {
        std::fprintf(stderr, "thread %d ended before a barrier at which thread %d waits\n", other, self);
        std::abort();
      }
      all = all && passed[other] >= mine;
    }
    if (all) {
      ++block->passed;
      return;
    }
    yield();
  }
}

[[noreturn]] inline void refuse(const char *what) {
  std::fprintf(stderr, "thread %d: %s\n", block->current, what);
  std::abort();
}

// Comes to a barrier for `threads` threads, and, if it `waits`, waits until it opens.
inline void come_to(int number, int threads, bool waits) {
  if (number < 1 || number >= BARRIERS || threads % WARP != 0) {
    refuse("a barrier's number is not from 1 to 15, or its threads are not whole warps");
  }
  Barrier &barrier = block->barriers[number];
  const int self = block->current;
  if (barrier.threads.empty()) {
    barrier.expected = threads;
  }
  if (barrier.expected != threads) {
    refuse("threads expect different numbers of threads at one barrier");
  }
  if (std::find(barrier.threads.begin(), barrier.threads.end(), self) != barrier.threads.end()) {
    refuse("a thread comes twice to a barrier that has not opened");
  }
  const long phase = barrier.opened;
  barrier.threads.push_back(self);
  if (static_cast<int>(barrier.threads.size()) == threads) {
    barrier.threads.clear();
    ++barrier.opened;
  }
  while (waits && barrier.opened == phase) {
    yield();
  }
  ++block->passed;
}

inline int lane() { return block->current % WARP; }
inline Exchange &exchange() { return block->exchanges[block->current / WARP]; }
inline void wait_for_warp() {
  const int first = block->current / WARP * WARP;
  wait(block->warp_barriers, first, first + WARP);
}

inline void enter() {
  block->body();
  block->fibres[block->current].is_done = true;
  ++block->passed;
  yield();
}

// Runs the threads of a warp until none of them can continue, or one pauses. Returns whether one is not done.
inline bool run_warp(Block &here, int first) {
  for (;;) {
    const long before = here.passed;
    here.is_paused = false;
    bool is_left = false;
    for (here.current = first; here.current < first + WARP; ++here.current) {
      if (!here.fibres[here.current].is_done) {
        is_left = true;
        swapcontext(&here.scheduler, &here.fibres[here.current].context);
      }
    }
    if (here.passed == before || here.is_paused) {
      return is_left;
    }
  }
}

// Runs a kernel: every block of the grid, one after the other. In every second block the last warp runs first.
inline void launch(Index grid, int threads, size_t shared_bytes, const std::function<void()> &body) {
  static bool is_backward = false;
  for (int y = 0; y < grid.y; ++y) {
    for (int x = 0; x < grid.x; ++x) {
      Block here;
      here.index = {x, y};
      // Not zero, so that a read before a write is detected.
      here.shared.assign(shared_bytes, 0xff);
      here.published = here.shared;
      here.fibres.resize(threads);
      here.exchanges.resize((threads + WARP - 1) / WARP);
      here.block_barriers.assign(threads, 0);
      here.warp_barriers.assign(threads, 0);
      here.body = body;
      block = &here;
      for (Fibre &fibre : here.fibres) {
        fibre.prepare(enter);
      }
      is_backward = !is_backward;
      for (bool is_left = true; is_left;) {
        is_left = false;
        const long before = here.passed;
        for (int first = 0; first < threads; first += WARP) {
          is_left = run_warp(here, is_backward ? threads - WARP - first : first) || is_left;
        }
        if (is_left && here.passed == before) {
          here.current = 0;
          refuse("all threads wait, at different barriers");
        }
      }
      for (const Barrier &barrier : here.barriers) {
        if (!barrier.threads.empty()) {
          here.current = barrier.threads.front();
          refuse("a thread came to a barrier that never opened");
        }
      }
      block = nullptr;
    }
  }
}

} // namespace emulation

#define threadIdx (emulation::Index{emulation::block->current, 0})
#define blockIdx (emulation::block->index)

inline void __syncthreads() {
  emulation::wait(emulation::block->block_barriers, 0, static_cast<int>(emulation::block->fibres.size()));
}
inline void __syncwarp() {
  emulation::wait_for_warp();
  // What a warp has written for itself must still be there when others have run.
  emulation::block->is_paused = true;
  emulation::yield();
}

inline float as_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline uint32_t as_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

// bf16 by rounding to nearest even.
inline uint16_t to_bf16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  if (std::isnan(value)) {
    return 0x7fff;
  }
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// The value of a code of e4m3: a sign, four bits of exponent, three of mantissa, no infinity.
inline float from_e4m3(uint32_t code) {
  if ((code & 0x7f) == 0x7f) {
    return NAN;
  }
  const int exponent = code >> 3 & 15;
  const int mantissa = code & 7;
  const float magnitude = exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8 + mantissa, exponent - 10);
  return code & 0x80 ? -magnitude : magnitude;
}

// PTX ISA, `cvt.rn.satfinite.e4m3x2.f32`, in the plainest way: the nearest of all codes, ties to even.
inline uint32_t nearest_e4m3(float value) {
  if (std::isnan(value)) {
    return 0x7f;
  }
  uint32_t best = 0;
  for (uint32_t code = 0; code < 0x7f; ++code) {
    const auto distance = [&](uint32_t of) { return std::abs(std::abs(static_cast<double>(value)) - from_e4m3(of)); };
    if (distance(code) < distance(best) || (distance(code) == distance(best) && code % 2 == 0)) {
      best = code;
    }
  }
  return best | (std::signbit(value) ? 0x80 : 0);
}

inline uint32_t convert_to_e4m3(float low, float high) { return nearest_e4m3(low) | nearest_e4m3(high) << 8; }

inline uint32_t pack(float low, float high) { return to_bf16(low) | static_cast<uint32_t>(to_bf16(high)) << 16; }
inline float power_of_two(float x) { return std::exp2(x); }
inline float reciprocal(float x) { return 1.0f / x; }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }

inline float from_lane_xor(float value, int mask) {
  emulation::Exchange &warp = emulation::exchange();
  warp.values[emulation::lane()] = value;
  emulation::wait_for_warp();
  const float other = warp.values[emulation::lane() ^ mask];
  emulation::wait_for_warp();
  return other;
}

// Sixteen bytes must be aligned to sixteen.
inline void check_aligned(const void *address) {
  if (reinterpret_cast<uintptr_t>(address) % 16 != 0) {
    std::fprintf(stderr, "an access of 16 bytes is not aligned\n");
    std::abort();
  }
}

inline emulation::Fibre &this_fibre() { return emulation::block->fibres[emulation::block->current]; }

inline void copy_async(void *target, const void *source, bool is_there) {
  static const uint4 zeros = {};
  check_aligned(target);
  check_aligned(source);
  this_fibre().open_group.push_back({target, is_there ? source : &zeros});
  // From now on the copy may be done at any time: a thread that still reads the old contents is detected.
  emulation::Block &block = *emulation::block;
  std::memset(target, 0xff, 16);
  std::memset(block.published.data() + (static_cast<unsigned char *>(target) - block.shared.data()), 0xff, 16);
}

inline void end_group() {
  this_fibre().groups.push_back(std::move(this_fibre().open_group));
  this_fibre().open_group.clear();
}

template <int LEFT> void wait_for_groups() {
  for (auto &groups = this_fibre().groups; groups.size() > LEFT; groups.pop_front()) {
    for (const emulation::Copy &copy : groups.front()) {
      std::memcpy(copy.target, copy.source, 16);
      this_fibre().arrived.push_back(copy);
    }
  }
}

inline uint16_t element(const void *row, int index) { return static_cast<const uint16_t *>(row)[index]; }

// Of four 8×8 matrices, whose rows the lanes pass, each lane gets two neighbors in a row, or one above the other.
inline void load_pairs(uint32_t (&matrices)[4], const void *shown_row, bool is_transposed) {
  check_aligned(shown_row);
  emulation::Exchange &warp = emulation::exchange();
  const int lane = emulation::lane();
  warp.addresses[lane] = shown_row;
  emulation::wait_for_warp();
  for (int m = 0; m < 4; ++m) {
    const auto at = [&](int row, int column) { return element(warp.addresses[8 * m + row], column); };
    const int line = lane / 4;
    const int first = lane % 4 * 2;
    const uint16_t low = is_transposed ? at(first, line) : at(line, first);
    const uint16_t high = is_transposed ? at(first + 1, line) : at(line, first + 1);
    matrices[m] = low | static_cast<uint32_t>(high) << 16;
  }
  emulation::wait_for_warp();
}

inline void load_matrices(uint32_t (&matrices)[4], const void *row) { load_pairs(matrices, row, false); }
inline void load_matrices_transposed(uint32_t (&matrices)[4], const void *row) { load_pairs(matrices, row, true); }

inline float half_of(uint32_t pair, int which) { return as_float(which == 0 ? pair << 16 : pair & 0xffff0000u); }

inline void multiply_add(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  emulation::Exchange &warp = emulation::exchange();
  const int lane = emulation::lane();
  uint32_t *mine = warp.words[lane];
  std::copy(a, a + 4, mine);
  mine[4] = b0;
  mine[5] = b1;
  emulation::wait_for_warp();
  // PTX ISA, "Matrix fragments for mma.m16n8k16 with floating point type".
  const auto left = [&](int row, int k) {
    const int owner = row % 8 * 4 + k % 8 / 2;
    return half_of(warp.words[owner][row / 8 + k / 8 * 2], k % 2);
  };
  const auto right = [&](int k, int column) {
    const int owner = column * 4 + k % 8 / 2;
    return half_of(warp.words[owner][4 + k / 8], k % 2);
  };
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4 + i / 2 * 8;
    const int column = lane % 4 * 2 + i % 2;
    for (int k = 0; k < 16; ++k) {
      sum[i] += left(row, k) * right(k, column);
    }
  }
  emulation::wait_for_warp();
}
