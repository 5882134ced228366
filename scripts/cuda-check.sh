#!/usr/bin/env bash
# Type-checks and lints the program with CUDA on any machine, without CUDA: a script in place of nvcc writes empty files. It
# does not check the kernels themselves.
set -euo pipefail
cd "$(dirname "$0")/.."

folder=$PWD/.tools/cuda-check
mkdir -p "$folder"
cat >"$folder/nvcc" <<'EOF'
#!/bin/sh
# Writes empty files instead of compiling.
folder=. is_ptx= source=
while [ "$#" -gt 0 ]; do
  case $1 in
  --version) echo 'Cuda compilation tools, release 13.0, V13.0.0'; exit ;;
  -o) : >"$2"; shift ;;
  --output-directory) folder=$2; shift ;;
  --ptx) is_ptx=1 ;;
  *.cu) source=$1 ;;
  esac
  shift
done
if [ -n "$is_ptx" ]; then
  name=${source##*/}
  : >"$folder/${name%.cu}.ptx"
fi
EOF
chmod +x "$folder/nvcc"

# In the profile `dev`: `release` has the real output of nvcc, for builds with CUDA.
NVCC=$folder/nvcc CUDA_COMPUTE_CAP=80 CUDARC_CUDA_VERSION=13000 \
  cargo clippy --locked --features cuda --lib --bins -- -D warnings
