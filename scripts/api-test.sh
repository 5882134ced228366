#!/usr/bin/env bash
# Sends the real program thousands of requests generated from its OpenAPI document, with a key and as the administrator:
# no answer may be a server error or undocumented. Installs schemathesis into .tools/api.
#
#   scripts/api-test.sh [PROGRAM]
#
# PROGRAM is target/release/fluxserve by default.
set -euo pipefail
cd "$(dirname "$0")/.."

program=$(realpath "${1:-target/release/fluxserve}")
start_seconds_max=120
examples_max=${FLUXSERVE_API_TEST_EXAMPLES:-25}

if [ ! -x .tools/api/bin/schemathesis ]; then
  mkdir -p .tools
  python3 -m venv .tools/api
fi
.tools/api/bin/pip install --quiet --disable-pip-version-check schemathesis==4.32.5
schemathesis=$PWD/.tools/api/bin/schemathesis
export PYTHONPATH=$PWD/tests/e2e SCHEMATHESIS_HOOKS=api_checks

folder=$(mktemp -d)
server=
finish() {
  status=$?
  [ -z "$server" ] || kill -KILL "$server" 2>/dev/null || true
  [ "$status" -eq 0 ] || tail -n 50 "$folder/log" >&2
  rm -rf "$folder"
}
trap finish EXIT

cd "$folder"
# An unreachable cluster: every request is answered, and none waits for it.
cat >kubeconfig <<'EOF'
{"apiVersion": "v1", "kind": "Config", "current-context": "x",
 "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:9"}}],
 "users": [{"name": "u", "user": {"token": "none"}}],
 "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}]}
EOF
# Short waits, so that no request takes long.
FLUXSERVE_ADMIN_PASSWORD='the password of this test' FLUXSERVE_HTTP_WAIT_SECONDS_MAX=2 \
  FLUXSERVE_KUBERNETES_KUBECONFIG=kubeconfig FLUXSERVE_SDAPI=true \
  "$program" serve --listen 127.0.0.1:0 --data-dir "$folder/data" >out 2>log &
server=$!
for _ in $(seq $((start_seconds_max * 5))); do
  ! grep -q 'curl' out || break
  kill -0 "$server" 2>/dev/null || { echo "error: the server has ended" >&2; exit 1; }
  sleep 0.2
done
url=$(sed -n 's/^fluxserve listens on //p' out)
key=$("$program" --data-dir "$folder/data" keys create --name test --scope all 2>>log)
curl -fsS -o /dev/null -c cookies "$url/v1/session" -H 'content-type: application/json' \
  -d '{"password": "the password of this test"}'
token=$(awk '$6 == "fluxserve_session" { print $7 }' cookies)

# Signing out would end the session of all later requests.
"$schemathesis" run "$url/openapi.json" \
  --header "x-api-key: $key" --header "cookie: fluxserve_session=$token" \
  --exclude-operation-id sign_out \
  --checks not_a_failure_of_the_server,status_code_conformance,content_type_conformance,response_schema_conformance \
  --phases examples,coverage,fuzzing --max-examples "$examples_max" --continue-on-failure --seed 1 \
  --request-timeout 30 --suppress-health-check all --warnings off

kill -0 "$server"
echo "no server error, and no undocumented answer"
