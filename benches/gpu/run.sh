#!/usr/bin/env bash
# Measures fluxserve on this machine's GPU, and diffusers beside it: `benches/gpu/run.sh --help`. Needs the program and
# Python, neither Rust nor a network. PYTHON names another python3.
set -euo pipefail
folder=$(cd "$(dirname "$0")" && pwd)
export PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
# Nothing is asked of any hub, and no progress bars fill the log.
export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1
export TQDM_DISABLE=1 TRANSFORMERS_VERBOSITY=error DIFFUSERS_VERBOSITY=error
exec "${PYTHON:-python3}" "$folder/run.py" "$@"
