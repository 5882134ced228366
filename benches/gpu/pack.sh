#!/usr/bin/env bash
# Packs what a GPU machine without Rust and without a network needs, and prints the two commands to run there:
#   benches/gpu/pack.sh PROGRAM [FOLDER]
# If that is too much, `git sparse-checkout` leaves out what the benchmarks do not read; `git sparse-checkout disable` brings it back.
# PROGRAM is fluxserve built with CUDA. FOLDER, target/gpu-pack by default, lies in the working tree and is ignored by git: the
# machine gets the tracked files and that folder, at the same paths. LIMIT_MIB is for both together.
set -euo pipefail
exec </dev/null
cd "$(dirname "$0")/../.."

LIMIT_MIB=${LIMIT_MIB:-60}
COMMAND_CHARACTERS_MAX=2000
diffusers=diffusers==0.42.1
program=${1:?name the program}
folder=${2:-target/gpu-pack}

fail() {
  echo "$1" >&2
  exit 1
}

[ -f "$program" ] || fail "$program is not there: build it with CUDA first"
git check-ignore -q "$folder" || fail "$folder is not ignored by git"
mkdir -p "$folder"
rm -f "$folder/fluxserve" "$folder/fluxserve.xz" "$folder"/*.whl

strip -s -o "$folder/fluxserve" "$program"
if command -v xz >/dev/null; then
  xz -6 -T0 "$folder/fluxserve"
else
  python3 -c 'import lzma, shutil, sys
with open(sys.argv[1], "rb") as plain, lzma.open(sys.argv[1] + ".xz", "wb") as packed: shutil.copyfileobj(plain, packed)' \
    "$folder/fluxserve"
  rm "$folder/fluxserve"
fi
"${PYTHON:-python3}" -m pip download -q --disable-pip-version-check --no-deps --only-binary=:all: -d "$folder" "$diffusers"
wheels=("$folder"/*.whl)

bytes() {
  { xargs -0 -r stat -c %s -- || true; } | awk '{ sum += $1 } END { printf "%d", sum }'
}
# Of those that a sparse checkout leaves out nothing travels.
tracked=$(git ls-files -z --cached --others --exclude-standard | bytes 2>/dev/null)
packed=$(find "$folder" -type f -print0 | bytes)
mib=$(((tracked + packed + (1 << 20) - 1) >> 20))
printf 'working tree %d KiB, %s %d KiB: %d MiB of %d\n' $((tracked >> 10)) "$folder" $((packed >> 10)) "$mib" "$LIMIT_MIB"
[ "$mib" -le "$LIMIT_MIB" ] || fail "that is too much: $mib MiB, at most $LIMIT_MIB; leave out what the benchmarks do not read:
  git sparse-checkout set --no-cone '/*' '!/tests/reference/quant/' '!/tests/reference/lora/'
and afterwards \`git sparse-checkout disable\`"

commit=$(git show -s --format='%h %cs')
[ -z "$(git status --porcelain)" ] || commit="$commit, changed"
given="--binary $folder/fluxserve.xz --wheel ${wheels[0]} --commit '$commit' --memory-gb 120 --out \"\${OUT:-results}\""
for call in "one --budget-seconds 225" "two --budget-seconds 500"; do
  command="benches/gpu/run.sh --call $call $given"
  [ "${#command}" -lt "$COMMAND_CHARACTERS_MAX" ] || fail "the command has ${#command} characters"
  printf '\n# It ends by itself, at the latest 30 s after its budget.\n%s\n' "$command"
done
