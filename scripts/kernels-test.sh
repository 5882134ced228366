#!/usr/bin/env bash
# What can be said of the CUDA kernels without a GPU. They run on an emulated machine and are compared with the plainest way
# to compute the same; where nvcc is (scripts/cuda-toolkit.sh brings it), it compiles them for every architecture we
# build for, and what they take of the machine is printed: none may spill registers into memory.
#
#   scripts/kernels-test.sh              # with nvcc, which is fetched if need be: 100 MB
#   scripts/kernels-test.sh emulation    # without
set -euo pipefail
cd "$(dirname "$0")/.."

folder=$PWD/.tools/kernels
mkdir -p "$folder"
c++ -std=c++17 -O2 -Wall -Wextra -Werror -Wno-unknown-pragmas -Itests/kernels -o "$folder/emulated" tests/kernels/emulated.cpp
"$folder/emulated"
[ "${1:-}" != emulation ] || exit 0

scripts/cuda-toolkit.sh >"$folder/toolkit.log"
# shellcheck source=/dev/null
. .tools/cuda/env.sh
for architecture in sm_80 sm_89 sm_90a; do
  for kernel in attention rows; do
    nvcc -arch="$architecture" -std=c++17 -O3 -Xptxas -v -cubin -o "$folder/$kernel.$architecture.cubin" \
      "src/engine/kernels/$kernel.cu" 2>"$folder/$kernel.$architecture.txt" || {
      cat "$folder/$kernel.$architecture.txt"
      exit 1
    }
    awk -v architecture="$architecture" '
      /Compiling entry function/ { split($0, quoted, "\x27"); name = quoted[2] }
      /spill/ { spills = $5 + $9 }
      /Used/ { printf "%-8s %-22s %3d registers, %d bytes spilled\n", architecture, name, $5, spills; total += spills }
      END { exit total > 0 }' "$folder/$kernel.$architecture.txt"
  done
done
