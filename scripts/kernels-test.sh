#!/usr/bin/env bash
# Tests the CUDA kernels without a GPU. They run on an emulated machine and are compared with the plainest computation. nvcc
# (from scripts/cuda-toolkit.sh) compiles them as the build does, and the result is checked: machine code for every supported
# architecture, PTX for all others, no registers spilled into memory, matrix instructions on the tensor cores, 16 bytes in each
# access.
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

# As the build compiles them.
architectures=(sm_80 sm_86 sm_89 sm_90a sm_120)
rm -rf "$folder/built"
mkdir -p "$folder/built/parts"
rustc --edition 2024 -o "$folder/alone" build/alone.rs
"$folder/alone" "$folder/built" 80 -Xptxas=-v >"$folder/report.txt"
awk '
  /Compiling entry function/ { split($0, quoted, "\x27"); name = quoted[2]; architecture = quoted[4] }
  /spill/ { spills = $5 + $9 }
  /Used/ { printf "%-8s %-26s %3d registers, %d bytes spilled\n", architecture, name, $5, spills; total += spills }
  END { exit total > 0 }' "$folder/report.txt" | sort
# nvcc's messages when it makes matrix instructions of a warpgroup wait for each other, or adds missing fences.
if grep -E 'Potential Performance Loss|warpgroup\.arrive is injected' "$folder/report.txt"; then
  exit 1
fi
tail -n 1 "$folder/report.txt"
du -cb "$folder/built/"*.fatbin | tail -n 1

# What the program contains, by what the driver would find there.
cd "$folder/built/parts"
for source in "$OLDPWD"/src/engine/kernels/*.cu; do
  kernel=$(basename "$source" .cu)
  expected=("${architectures[@]}" 'PTX sm_80')
  extracted=(--extract-elf all --extract-ptx all)
  case $kernel in *_hopper)
    expected=(sm_90a)
    extracted=(--extract-elf all)
    ;;
  esac
  found=$(cuobjdump --list-elf --list-ptx "../$kernel.fatbin" | sed -E 's/^(ELF|PTX) file .*\.(sm_[0-9a-z]+)\..*/\1 \2/; s/^ELF //' | sort)
  if [ "$found" != "$(printf '%s\n' "${expected[@]}" | sort)" ]; then
    echo "error: $kernel.fatbin contains: $found" >&2
    exit 1
  fi
  cuobjdump "${extracted[@]}" "../$kernel.fatbin" >/dev/null
  for part in "$kernel".*sm_*; do
    mv "$part" "$(echo "$part" | sed -E 's/^([a-z_]+)\..*(sm_[0-9a-z]+)\.(cubin|ptx)$/\1.\2.\3/')"
  done
done
cd "$OLDPWD"
parts=$folder/built/parts
# PTX that the driver compiles for architectures without machine code: of no single architecture, and accepted by all.
for ptx in "$parts"/*.ptx; do
  grep -qx '.target sm_80' "$ptx"
  for architecture in sm_86 sm_87 sm_89 sm_90 sm_100 sm_103 sm_110 sm_120 sm_121; do
    ptxas -O0 -arch="$architecture" -o /dev/null "$ptx"
  done
done

# The machine code: for each kernel the instructions by name, and how often.
for architecture in "${architectures[@]}"; do
  for cubin in "$parts"/*."$architecture.cubin"; do
    cuobjdump -sass "$cubin" |
      grep -oE '(Function : \w+|\b(HMMA|HGMMA|LDSM|LDGSTS|LDG|STG|LDL|STL)(\.[A-Zx0-9]+)*\b)' |
      awk '/^Function/ { kernel = $3; next } { count[kernel " " $1]++ } END { for (name in count) print name, count[name] }' |
      sort
  done >"$folder/instructions.$architecture.txt"
  for kernel in attention_128 attention_tall_128 biased_attention_64 convolution low_rank_shrink low_rank_expand; do
    grep -q "^$kernel HMMA.16816.F32.BF16 " "$folder/instructions.$architecture.txt"
  done
done
cat "$folder/instructions.sm_90a.txt"
for kernel in attention_hopper_128 attention_hopper_ordered_128 convolution_hopper convolution_hopper_doubled; do
  grep -q "^$kernel HGMMA.64x128x16.F32.BF16 " "$folder/instructions.sm_90a.txt"
done
# Copies in loops that the compiler does not unroll take a third of all instructions. Unrolled, each one that a thread starts is
# in the code once.
for copies in 'attention_128 LDGSTS.E.BYPASS.128 24' 'attention_tall_128 LDGSTS.E.BYPASS.128 40'; do
  grep -qx "$copies" "$folder/instructions.sm_90a.txt" || {
    echo "expected: $copies" >&2
    exit 1
  }
done
# Most of the 66 powers of two of a turn must be between its two waits: there the tensor cores are at work. The warpgroups of
# one of the kernels are ordered by barrier 1: before the loop, and in it.
cuobjdump -sass "$parts/attention_hopper.sm_90a.cubin" | awk '
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
# few for each image; a row's one scale; the codes of quantized weights, whose blocks begin anywhere. A convolution's input is copied
# to shared memory without registers. On 12.0, copies that fill what is outside of a matrix with zeros say so behind their width.
narrow='^(biased_attention_[0-9]+ LDG|group_|quantize_[a-z_]+ STG\.E |scale_rows_and_columns LDG\.E |expand_[a-z0-9_]+ LDG)'
for architecture in "${architectures[@]}"; do
  instructions=$folder/instructions.$architecture.txt
  if grep -E ' (LDL|STL)' "$instructions" || grep -E '^convolution.* LDG\.' "$instructions" ||
    grep -E ' (LDG|STG|LDGSTS)' "$instructions" | grep -Ev "\.128(\.ZFILL)? |$narrow"; then
    echo "the instructions above, for $architecture, move less than 16 bytes, or spill" >&2
    exit 1
  fi
done
# The rounding to e4m3 is one instruction for two numbers where the device has it.
for architecture in sm_89 sm_90a sm_120; do
  cuobjdump -sass "$parts/quantize.$architecture.cubin" | grep 'F2FP.SATFINITE.E4M3.F32' >/dev/null
done
