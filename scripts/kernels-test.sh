#!/usr/bin/env bash
# Tests the CUDA kernels without a GPU. They run on an emulated machine and are compared with the plainest computation. nvcc
# (from scripts/cuda-toolkit.sh) compiles them for every supported architecture, and the result is checked: no registers
# spilled into memory, matrix instructions on the tensor cores, 16 bytes in each access.
#
#   scripts/kernels-test.sh              # with nvcc, which is fetched if need be: 100 MB
#   scripts/kernels-test.sh emulation    # without
set -euo pipefail
cd "$(dirname "$0")/.."

folder=$PWD/.tools/kernels
mkdir -p "$folder"
for test in tests/kernels/*.cpp; do
  program=$folder/$(basename "$test" .cpp)
  c++ -std=c++17 -O2 -Wall -Wextra -Werror -Wno-unknown-pragmas -Itests/kernels -o "$program" "$test"
  "$program"
done
[ "${1:-}" != emulation ] || exit 0

scripts/cuda-toolkit.sh >"$folder/toolkit.log"
# shellcheck source=/dev/null
. .tools/cuda/env.sh
for architecture in sm_80 sm_89 sm_90a; do
  for source in src/engine/kernels/*.cu; do
    kernel=$(basename "$source" .cu)
    nvcc -arch="$architecture" -std=c++17 -O3 -Xptxas -v -cubin -o "$folder/$kernel.$architecture.cubin" \
      "$source" 2>"$folder/$kernel.$architecture.txt" || {
      cat "$folder/$kernel.$architecture.txt"
      exit 1
    }
    awk -v architecture="$architecture" '
      /Compiling entry function/ { split($0, quoted, "\x27"); name = quoted[2] }
      /spill/ { spills = $5 + $9 }
      /Used/ { printf "%-8s %-22s %3d registers, %d bytes spilled\n", architecture, name, $5, spills; total += spills }
      END { exit total > 0 }' "$folder/$kernel.$architecture.txt"
    # nvcc's messages when it makes matrix instructions of a warpgroup wait for each other, or adds missing fences.
    if grep -E 'Potential Performance Loss|warpgroup\.arrive is injected' "$folder/$kernel.$architecture.txt"; then
      exit 1
    fi
  done
done

# The machine code: for each kernel the instructions by name, and how often.
for source in src/engine/kernels/*.cu; do
  cuobjdump -sass "$folder/$(basename "$source" .cu).sm_90a.cubin" |
    grep -oE '(Function : \w+|\b(HMMA|HGMMA|LDSM|LDGSTS|LDG|STG|LDL|STL)(\.[A-Zx0-9]+)*\b)' |
    awk '/^Function/ { kernel = $3; next } { count[kernel " " $1]++ } END { for (name in count) print name, count[name] }' |
    sort
done | tee "$folder/instructions.txt"
for kernel in attention_128 attention_tall_128 biased_attention_64 convolution; do
  grep -q "^$kernel HMMA.16816.F32.BF16 " "$folder/instructions.txt"
done
for kernel in attention_hopper_128 attention_hopper_ordered_128 convolution_hopper convolution_hopper_doubled; do
  grep -q "^$kernel HGMMA.64x128x16.F32.BF16 " "$folder/instructions.txt"
done
# Copies in loops that the compiler does not unroll take a third of all instructions. Unrolled, each one that a thread starts is
# in the code once.
for copies in 'attention_128 LDGSTS.E.BYPASS.128 24' 'attention_tall_128 LDGSTS.E.BYPASS.128 40'; do
  grep -qx "$copies" "$folder/instructions.txt" || {
    echo "expected: $copies" >&2
    exit 1
  }
done
# Most of the 66 powers of two of a turn must be between its two waits: there the tensor cores are at work. The warpgroups of
# one of the kernels are ordered by barrier 1: before the loop, and in it.
cuobjdump -sass "$folder/attention_hopper.sm_90a.cubin" | awk '
  /Function :/ { kernel = $3; powers[kernel] = 0; is_beside = 0 }
  /WARPGROUP.DEPBAR.LE gsb0, 0x1/ { is_beside = 1 }
  /WARPGROUP.DEPBAR.LE gsb0, 0x0/ { is_beside = 0 }
  is_beside && /MUFU.EX2/ { ++powers[kernel] }
  /BAR\.ARV 0x1, 0x100/ { ++arrivals[kernel] }
  /BAR\.SYNC\.DEFER_BLOCKING 0x1, 0x100/ { ++waits[kernel] }
  END {
    for (kernel in powers) {
      places = kernel ~ /ordered/ ? 2 : 0
      printf "%s: %d powers of two beside matrix instructions, %d arrivals, %d waits\n", kernel, powers[kernel],
        arrivals[kernel], waits[kernel]
      failed = failed || powers[kernel] < 60 || arrivals[kernel] != places || waits[kernel] != places
    }
    exit failed
  }'
# Narrow on purpose: a head's bias, which is copied to shared memory once; the numbers of GroupNorm's groups and channels, a
# few for each image; a row's one scale. A convolution's input is copied to shared memory without registers.
narrow='^(biased_attention_[0-9]+ LDG|group_|quantize_[a-z_]+ STG\.E )'
if grep -E ' (LDL|STL)' "$folder/instructions.txt" || grep -E '^convolution.* LDG\.' "$folder/instructions.txt" ||
  grep -E ' (LDG|STG|LDGSTS)' "$folder/instructions.txt" | grep -Ev "\.128 |$narrow"; then
  echo "the instructions above move less than 16 bytes, or spill" >&2
  exit 1
fi
# The rounding to e4m3 is one instruction for two numbers.
cuobjdump -sass "$folder/quantize.sm_90a.cubin" | grep 'F2FP.SATFINITE.E4M3.F32' >/dev/null
