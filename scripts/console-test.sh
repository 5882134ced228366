#!/usr/bin/env bash
# The console in a real browser, against the real program: installs Debian's Chromium if there is none, Playwright and axe
# into .tools/browser, and runs tests/e2e/console.py.
#
#   scripts/console-test.sh [PROGRAM [OPTION...]]
#
# PROGRAM is target/release/fluxserve by default. `--screenshots DIR` saves an image of each page.
set -euo pipefail
cd "$(dirname "$0")/.."

program=${1:-target/release/fluxserve}
[ $# -eq 0 ] || shift

if ! command -v chromium >/dev/null || ! python3 -c 'import venv, ensurepip' 2>/dev/null; then
  as_root=()
  [ "$(id -u)" -eq 0 ] || as_root=(sudo)
  export DEBIAN_FRONTEND=noninteractive
  "${as_root[@]}" apt-get update -qq
  "${as_root[@]}" apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core python3-venv
fi

if [ ! -x .tools/browser/bin/python ]; then
  mkdir -p .tools
  python3 -m venv .tools/browser
fi
.tools/browser/bin/pip install --quiet --disable-pip-version-check --requirement tests/e2e/requirements.txt
exec .tools/browser/bin/python tests/e2e/console.py "$program" --browser "$(command -v chromium)" "$@"
