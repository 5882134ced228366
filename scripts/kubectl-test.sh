#!/usr/bin/env bash
# Tests the real kubectl with the console's kubeconfig, a worker, and a stub API server. Installs kubectl into
# .tools/kubernetes if the machine has none.
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
