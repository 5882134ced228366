// Matrix instructions of a warpgroup, four warps together, of sm_90a (PTX ISA, "Asynchronous Warpgroup Level Matrix
// Instructions"). They are asynchronous: until an instruction has been waited for, its operands must stay and its results
// must not be touched. So the functions that order and wait for instructions name the registers concerned: then the compiler
// moves nothing across them.
//
// A tile in shared memory is a sequence of panels: 64 bf16 values in each row, rows of 128 bytes one below the other, and the
// 16-byte chunks of row r swizzled by r % 8. A tile is aligned to 1024 bytes.
#pragma once

#include "device.cuh"

// Threads of a warpgroup.
constexpr int WARPGROUP = 128;

// Values in a row of a panel, and the bytes of eight rows.
constexpr int PANEL = 64;
constexpr int EIGHT_ROWS_BYTES = 8 * 128;

// Alignment of tiles.
constexpr int TILE_ALIGNMENT = 1024;

// Position of a row's chunk in a tile of `ROWS` rows, in values.
template <int ROWS> static __device__ __forceinline__ int in_panels(int row, int chunk) {
  constexpr int CHUNKS = PANEL / CHUNK;
  return chunk / CHUNKS * (ROWS * PANEL) + row * PANEL + (chunk ^ row) % CHUNKS * CHUNK;
}

// Describes a matrix in shared memory ("Matrix Descriptor Format"), with the swizzle of 128 bytes.
//
// `panel_bytes` are between panels where a row runs along the result's columns. Where rows run along the sum, one instruction
// stays within a panel, and the field is ignored: pass `WITHIN_PANEL`.
constexpr int WITHIN_PANEL = 16;
static __device__ __forceinline__ uint64_t matrix_at(uint32_t address, int panel_bytes) {
  return (address & 0x3ffff) >> 4 | static_cast<uint64_t>(panel_bytes >> 4) << 16 |
         static_cast<uint64_t>(EIGHT_ROWS_BYTES >> 4) << 32 | static_cast<uint64_t>(1) << 62;
}

// The matrix so many bytes further on.
static __device__ __forceinline__ uint64_t further(uint64_t matrix, int bytes) { return matrix + (bytes >> 4); }

#ifdef __CUDACC__

static __device__ __forceinline__ uint32_t shared_address(const void *pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// Tells the compiler that a number is the same in all lanes of a warp.
static __device__ __forceinline__ int same_in_warp(int number) { return __shfl_sync(0xffffffffu, number, 0); }

// A barrier of the block besides that of __syncthreads, which is number 0: it opens when `THREADS` threads have come to it.
// Whole warps come. Those that arrive pass it at once; those that wait pass it when it opens.
template <int BARRIER, int THREADS> static __device__ __forceinline__ void arrive_at() {
  asm volatile("bar.arrive %0, %1;" ::"n"(BARRIER), "n"(THREADS) : "memory");
}
template <int BARRIER, int THREADS> static __device__ __forceinline__ void wait_at() {
  asm volatile("bar.sync %0, %1;" ::"n"(BARRIER), "n"(THREADS) : "memory");
}

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// Makes this thread's finished copies visible to matrix instructions; those of other threads, after a barrier.
static __device__ __forceinline__ void publish_copies() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

#define EIGHT_FLOATS(mode, sum, i)                                                                                      \
  mode(sum[i]), mode(sum[i + 1]), mode(sum[i + 2]), mode(sum[i + 3]), mode(sum[i + 4]), mode(sum[i + 5]),               \
      mode(sum[i + 6]), mode(sum[i + 7])
#define ALL_FLOATS(mode, sum)                                                                                           \
  EIGHT_FLOATS(mode, sum, 0), EIGHT_FLOATS(mode, sum, 8), EIGHT_FLOATS(mode, sum, 16), EIGHT_FLOATS(mode, sum, 24),     \
      EIGHT_FLOATS(mode, sum, 32), EIGHT_FLOATS(mode, sum, 40), EIGHT_FLOATS(mode, sum, 48), EIGHT_FLOATS(mode, sum, 56)
#define FOUR_WORDS(words) "+r"(words[0]), "+r"(words[1]), "+r"(words[2]), "+r"(words[3])
#define ALL_WORDS(words)                                                                                                \
  FOUR_WORDS(words[0]), FOUR_WORDS(words[1]), FOUR_WORDS(words[2]), FOUR_WORDS(words[3]), FOUR_WORDS(words[4]),         \
      FOUR_WORDS(words[5]), FOUR_WORDS(words[6]), FOUR_WORDS(words[7])
#define SUM_REGISTERS                                                                                                   \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                                             \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "                                    \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "                                    \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}"

// Orders register accesses of the program before the instructions that use them.
static __device__ __forceinline__ void order_registers() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
static __device__ __forceinline__ void order_registers(float (&sum)[64], uint32_t (&left)[8][4]) {
  asm volatile("wgmma.fence.sync.aligned;" : ALL_FLOATS("+f", sum), ALL_WORDS(left)::"memory");
}

// The same for a left operand alone, while instructions continue with sums that the program has not touched.
static __device__ __forceinline__ void order_registers(uint32_t (&left)[8][4]) {
  asm volatile("wgmma.fence.sync.aligned;" : ALL_WORDS(left)::"memory");
}

// Starts sum = a bᵀ, with `a` 64×16 and `b` 128×16 in shared memory, the sum along the rows of both. Lane l of warp w holds
// of the sum's columns 8 n + 2 (l % 4) and the next: in 4 n and 4 n + 1 those of row 16 w + l / 4, in 4 n + 2 and 4 n + 3
// those eight rows below.
static __device__ __forceinline__ void multiply_panels(float (&sum)[64], uint64_t a, uint64_t b) {
  asm volatile("{\n.reg .pred accumulates;\nsetp.ne.b32 accumulates, 0, 0;\n"
               "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 " SUM_REGISTERS ", %64, %65, accumulates, 1, 1, 0, 0;\n}"
               : ALL_FLOATS("=f", sum)
               : "l"(a), "l"(b)
               : "memory");
}

// Starts sum += a bᵀ.
static __device__ __forceinline__ void multiply_add_panels(float (&sum)[64], uint64_t a, uint64_t b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 " SUM_REGISTERS ", %64, %65, 1, 1, 1, 0, 0;"
               : ALL_FLOATS("+f", sum)
               : "l"(a), "l"(b)
               : "memory");
}

// Starts sum += a b, with `a` 64×16 in registers, where warp w holds its 16 rows in the layout of `multiply_add`, and `b`
// 16×128 in shared memory.
static __device__ __forceinline__ void multiply_add_rows(float (&sum)[64], const uint32_t (&a)[4], uint64_t b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 " SUM_REGISTERS
               ", {%64, %65, %66, %67}, %68, 1, 1, 1, 1;"
               : ALL_FLOATS("+f", sum)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b)
               : "memory");
}

// Starts sum += a bᵀ, with `a` 64×16 in registers and `b` 128×16 in shared memory, the sum along its rows.
static __device__ __forceinline__ void multiply_add_rows_by_rows(float (&sum)[64], const uint32_t (&a)[4], uint64_t b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 " SUM_REGISTERS
               ", {%64, %65, %66, %67}, %68, 1, 1, 1, 0;"
               : ALL_FLOATS("+f", sum)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b)
               : "memory");
}

// Closes a group of instructions.
static __device__ __forceinline__ void end_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits until at most `LEFT` of the latest groups are pending; then `sum` is complete and `left`, if named, is free.
template <int LEFT> static __device__ __forceinline__ void wait_for_products(float (&sum)[64]) {
  asm volatile("wgmma.wait_group.sync.aligned %64;" : ALL_FLOATS("+f", sum) : "n"(LEFT) : "memory");
}
template <int LEFT> static __device__ __forceinline__ void wait_for_products(float (&sum)[64], uint32_t (&left)[8][4]) {
  asm volatile("wgmma.wait_group.sync.aligned %96;" : ALL_FLOATS("+f", sum), ALL_WORDS(left) : "n"(LEFT) : "memory");
}

// The same for a left operand alone: other instructions continue with the sum.
template <int LEFT> static __device__ __forceinline__ void wait_for_products(uint32_t (&left)[8][4]) {
  asm volatile("wgmma.wait_group.sync.aligned %32;" : ALL_WORDS(left) : "n"(LEFT) : "memory");
}

#endif
#else
#include "warpgroup.h"
#endif
