#!/usr/bin/env bash
# Follows the README's first steps: starts a server with a new data folder, runs the `curl` line that it prints, and
# checks that the result is a PNG. Then stops the server.
#
#   scripts/first-picture.sh [PROGRAM [IMAGE]]
#
# PROGRAM is target/release/fluxserve by default. IMAGE is where to keep the image; without it nothing is left behind.
set -euo pipefail

program=${1:-$(dirname "$0")/../target/release/fluxserve}
image=${2:-}
start_seconds_max=180

program=$(realpath "$program")
folder=$(mktemp -d)
server=

finish() {
  status=$?
  if [ -n "$server" ] && kill -0 "$server" 2>/dev/null; then
    kill -KILL "$server"
  fi
  if [ "$status" -ne 0 ]; then
    # Its demo key is deleted with the data folder.
    echo "--- the server's output:" >&2
    cat "$folder/out" "$folder/log" >&2 || true
  fi
  rm -rf "$folder"
}
trap finish EXIT

fail() {
  echo "error: $1" >&2
  exit 1
}

cd "$folder"
# Port 0: any free port.
"$program" serve --listen 127.0.0.1:0 --data-dir "$folder/data" >out 2>log &
server=$!

command_line=
for _ in $(seq $((start_seconds_max * 5))); do
  command_line=$(grep -m 1 -E '^ *curl ' out || true)
  [ -z "$command_line" ] || break
  kill -0 "$server" 2>/dev/null || fail "the server ended by itself"
  sleep 0.2
done
[ -n "$command_line" ] || fail "no \`curl\` line after $start_seconds_max seconds"

bash -euo pipefail -c "$command_line" </dev/null || fail "the \`curl\` line failed"
generated=$(find . -maxdepth 1 -name '*.png' -print -quit)
[ -n "$generated" ] || fail "the \`curl\` line left no .png file"
signature=$(od -An -N8 -tx1 "$generated" | tr -d ' \n')
[ "$signature" = 89504e470d0a1a0a ] || fail "$generated is not a PNG: it starts with $signature"
size=$(od -An -j16 -N8 -tu1 "$generated" | awk '{ print $3 * 256 + $4 "x" $7 * 256 + $8 }')
bytes=$(wc -c <"$generated")

kill -TERM "$server"
wait "$server" || fail "the server did not stop cleanly: exit code $?"
server=

cd - >/dev/null
[ -z "$image" ] || cp "$folder/$generated" "$image"
echo "a PNG of $size pixels, $bytes bytes${image:+, in $image}"
