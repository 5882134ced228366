#!/usr/bin/env bash
# Does what the README asks a newcomer to do: starts a server with a new data folder, pastes the `curl` line that it
# prints, and looks whether a PNG comes out. Then asks the server to stop.
#
#   scripts/first-picture.sh [PROGRAM [PICTURE]]
#
# PROGRAM is target/release/fluxserve by default. PICTURE is where the picture is kept; without it nothing is left behind.
set -euo pipefail

program=${1:-$(dirname "$0")/../target/release/fluxserve}
picture=${2:-}
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
    # The demo key in it is gone with the data folder.
    echo "--- what the server said:" >&2
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
# Port 0: whichever is free.
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
drawn=$(find . -maxdepth 1 -name '*.png' -print -quit)
[ -n "$drawn" ] || fail "the \`curl\` line left no .png file"
signature=$(od -An -N8 -tx1 "$drawn" | tr -d ' \n')
[ "$signature" = 89504e470d0a1a0a ] || fail "$drawn is no PNG: it begins with $signature"
size=$(od -An -j16 -N8 -tu1 "$drawn" | awk '{ print $3 * 256 + $4 "x" $7 * 256 + $8 }')
bytes=$(wc -c <"$drawn")

kill -TERM "$server"
wait "$server" || fail "the server did not stop cleanly: exit code $?"
server=

cd - >/dev/null
[ -z "$picture" ] || cp "$folder/$drawn" "$picture"
echo "a PNG of $size pixels, $bytes bytes${picture:+, in $picture}"
