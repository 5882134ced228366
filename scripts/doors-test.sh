#!/usr/bin/env bash
# Refusals reach their clients: raw sockets, Node's fetch and OpenAI's clients, directly and through a real nginx.
# Installs the clients into .tools, and Debian's nginx into .tools/nginx if the machine has none.
#
#   scripts/doors-test.sh [PROGRAM]
#
# PROGRAM is target/release/fluxserve by default.
set -euo pipefail
cd "$(dirname "$0")/.."

program=$(realpath "${1:-target/release/fluxserve}")

# shellcheck source=scripts/openai-clients.sh
. scripts/openai-clients.sh

# The package is unpacked, not installed, so that root is not needed.
unpack_nginx() {
  mkdir -p .tools/nginx
  cd .tools/nginx
  apt-get download nginx >log 2>&1 || { apt-get update >>log 2>&1 && apt-get download nginx >>log 2>&1; } || return 1
  dpkg-deb -x nginx_*.deb .
}
nginx=$(command -v nginx || true)
if [ -z "$nginx" ]; then
  [ -x .tools/nginx/usr/sbin/nginx ] || (unpack_nginx) || echo "warning: nginx cannot be installed here, see .tools/nginx/log"
  nginx=$(realpath .tools/nginx/usr/sbin/nginx 2>/dev/null || true)
  [ -z "$nginx" ] || "$nginx" -v 2>/dev/null || { echo "warning: nginx does not run here"; nginx=; }
fi

# The clients must not read settings from the environment.
unset OPENAI_API_KEY OPENAI_BASE_URL OPENAI_ORG_ID OPENAI_PROJECT_ID
"$python" tests/e2e/doors.py "$program" --node "${node[0]}" --packages "$packages" --nginx "$nginx"
