#!/usr/bin/env bash
# Webhooks of the real program: kills, and a receiver that is slow, down, fails, or closes in the middle. The receiver verifies with the
# package `standardwebhooks`, which is installed into .tools/webhooks.
#
#   scripts/webhooks-test.sh [PROGRAM] [OPTION...]
#
# PROGRAM is target/release/fluxserve by default; tests/e2e/webhooks.py has the options.
set -euo pipefail
cd "$(dirname "$0")/.."

program=$(realpath "${1:-target/release/fluxserve}")
shift || true

if [ ! -x .tools/webhooks/bin/python ]; then
  mkdir -p .tools
  python3 -m venv .tools/webhooks
fi
python=.tools/webhooks/bin/python
"$python" -m pip install --quiet --disable-pip-version-check standardwebhooks==1.1.0

"$python" tests/e2e/webhooks.py "$program" "$@"
