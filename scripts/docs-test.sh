#!/usr/bin/env bash
# The commands of README.md and of all other documents, against the real program: installs OpenAI's clients into .tools, and
# runs scripts/docs-test.py. `scripts/docs-test.sh target/release/fluxserve README.md` does what the README asks of a newcomer.
#
#   scripts/docs-test.sh [PROGRAM [FILE...]]
#
# PROGRAM is target/release/fluxserve by default, FILE every Markdown file.
set -euo pipefail
cd "$(dirname "$0")/.."

program=${1:-target/release/fluxserve}
[ $# -eq 0 ] || shift

# shellcheck source=scripts/openai-clients.sh
. scripts/openai-clients.sh

exec python3 scripts/docs-test.py "$program" "$@" --python "$python"
