#!/usr/bin/env bash
# OpenAI's clients, LiteLLM and the requests of applications against the real program: they only get its base URL and a key.
# Installs the clients into .tools.
#
#   scripts/openai-test.sh [PROGRAM]
#
# PROGRAM is target/release/fluxserve by default.
set -euo pipefail
cd "$(dirname "$0")/.."

program=$(realpath "${1:-target/release/fluxserve}")
start_seconds_max=180

# shellcheck source=scripts/openai-clients.sh
. scripts/openai-clients.sh
# It comes with clients of many other services: 300 MB, half a minute.
"$python" -m pip install --quiet --disable-pip-version-check litellm==1.110.2

folder=$(mktemp -d)
server=
finish() {
  status=$?
  [ -z "$server" ] || kill -KILL "$server" 2>/dev/null || true
  [ "$status" -eq 0 ] || tail -n 50 "$folder/log" >&2 || true
  rm -rf "$folder"
}
trap finish EXIT

"$program" serve --listen 127.0.0.1:0 --data-dir "$folder/data" >"$folder/out" 2>>"$folder/log" &
server=$!
for _ in $(seq $((start_seconds_max * 5))); do
  ! grep -q 'curl' "$folder/out" || break
  kill -0 "$server" 2>/dev/null || { echo "error: the server has ended" >&2; exit 1; }
  sleep 0.2
done
url=$(sed -n 's/^fluxserve listens on //p' "$folder/out")
key=$(grep -oE 'rgpu_[0-9A-Za-z]{46}' "$folder/out" | head -n 1)

# The clients must not read settings from the environment.
unset OPENAI_API_KEY OPENAI_BASE_URL OPENAI_API_BASE OPENAI_ORG_ID OPENAI_PROJECT_ID
export FLUXSERVE_TEST_URL=$url/v1 FLUXSERVE_TEST_KEY=$key
new_key() {
  "$program" keys create --data-dir "$folder/data" --name "$@" 2>>"$folder/log"
}
limited_key() {
  new_key limited --scope inference --requests-per-minute 1
}
FLUXSERVE_TEST_OTHER_KEY=$(new_key other --scope kubernetes-exec:all)
export FLUXSERVE_TEST_OTHER_KEY
FLUXSERVE_TEST_LIMITED_KEY=$(limited_key) "$python" tests/e2e/openai.py
FLUXSERVE_TEST_LIMITED_KEY=$(limited_key) "${node[@]}" tests/e2e/openai.mjs "$packages"
FLUXSERVE_TEST_LIMITED_KEY=$(limited_key) "$python" tests/e2e/litellm_client.py
"$python" tests/e2e/apps.py

kill -TERM "$server"
wait "$server"
server=
