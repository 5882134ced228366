#!/usr/bin/env bash
# Images and uploads in a bucket, with a real S3 server: s3s-fs, which is built into .tools/s3 once.
#
#   scripts/objects-test.sh [PROGRAM] [OPTION...]
#
# PROGRAM is target/release/fluxserve by default; tests/e2e/objects.py has the options.
set -euo pipefail
cd "$(dirname "$0")/.."

program=$(realpath "${1:-target/release/fluxserve}")
shift || true

version=0.14.1
server=.tools/s3/bin/s3s-fs
if [ "$("$server" --version 2>/dev/null || true)" != "s3s-fs $version" ]; then
  # Without optimization: it is built faster than the tests would gain.
  cargo install --quiet --debug --locked --features binary --root .tools/s3 --target-dir target/s3 "s3s-fs@$version"
fi

python3 tests/e2e/objects.py "$program" --server "$server" "$@"
