#!/usr/bin/env bash
# Makes the images of the documents: docs/scheduler.svg from the numbers in benches/README.md, and docs/console.png from the
# console in a real browser, with what scripts/console-test.sh installs.
#
#   scripts/docs-images.sh [PROGRAM [FOLDER]]
#
# PROGRAM is target/release/fluxserve by default, FOLDER is docs.
set -euo pipefail
cd "$(dirname "$0")/.."

program=${1:-target/release/fluxserve}
folder=${2:-docs}

mkdir -p "$folder"
scripts/scheduler_figure.py "$folder/scheduler.svg"
if [ ! -x .tools/browser/bin/python ]; then
  mkdir -p .tools
  python3 -m venv .tools/browser
fi
.tools/browser/bin/pip install --quiet --disable-pip-version-check --requirement tests/e2e/requirements.txt
exec .tools/browser/bin/python scripts/docs_images.py "$program" --browser "$(command -v chromium)" --out "$folder/console.png"
