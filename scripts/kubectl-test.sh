#!/usr/bin/env bash
# Has the real kubectl get into namespaces by way of a worker: with the file that the console gives, against a small API
# server of the tests. Brings kubectl into .tools/kubernetes where the machine has none.
set -euo pipefail
cd "$(dirname "$0")/.."

status=0
tests/e2e/kubernetes/tools.sh --kubectl-only .tools/kubernetes || status=$?
if [ "$status" -eq 3 ]; then
  echo "skipped: kubectl, because it cannot be fetched from here"
  exit
fi
[ "$status" -eq 0 ] || exit "$status"
FLUXSERVE_TEST_NEEDS_KUBECTL=1 cargo test --locked --test it kubectl
