#!/usr/bin/env bash
# Installs what is needed to build with `--features cuda` on a machine without CUDA, GPU or driver, and writes the environment
# to DIR/env.sh:
#
#   scripts/cuda-toolkit.sh [DIR]          # .tools/cuda by default; 110 MB to fetch, some 300 MB on the disk
#   . .tools/cuda/env.sh
#   cargo build --release --features cuda  # for all GPUs since Ampere; CUDA_COMPUTE_CAP=90 before env.sh: for Hopper alone
#
# The program finds CUDA's libraries at run time, and runs without them where there are none. Needs Python with pip, a C
# compiler, and cargo.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "${1:-$root/.tools/cuda}"
prefix=$(cd "${1:-$root/.tools/cuda}" && pwd)
home=$prefix/nvidia/cu13

if [ ! -x "$home/bin/nvcc" ] || [ ! -x "$home/bin/cuobjdump" ]; then
  python3 -m pip install --quiet --no-cache-dir --no-compile --root-user-action=ignore --disable-pip-version-check \
    --only-binary :all: --require-hashes --target "$prefix" --requirement "$root/scripts/cuda-requirements.txt"
fi

# nvcc.profile looks for libraries in lib64, and crates ask for `cudart`: the static one, which loads the driver itself.
ln -sfn lib "$home/lib64"
ln -sfn libcudart_static.a "$home/lib/libcudart.a"
# The linker takes a shared library before an archive.
rm -f "$home/lib/libcudart.so"

python3 "$root/scripts/cuda_stand_ins.py" "$home/lib"

cat >"$prefix/env.sh" <<EOF
export CUDA_HOME='$home'
export PATH="\$CUDA_HOME/bin:\$PATH"
export CUDARC_CUDA_VERSION=13000
export CUDA_COMPUTE_CAP=\${CUDA_COMPUTE_CAP:-80}
export CUDAFORGE_THREADS=\${CUDAFORGE_THREADS:-\$(nproc)}
EOF
echo ". $prefix/env.sh"
