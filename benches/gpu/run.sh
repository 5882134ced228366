#!/usr/bin/env bash
# Measures fluxserve and diffusers on this machine's GPU: `benches/gpu/run.sh --help`. Needs the program and Python, but
# neither Rust nor a network. PYTHON names another python3.
set -euo pipefail
folder=$(cd "$(dirname "$0")" && pwd)
export PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
# No requests to a hub, and no progress bars in the log.
export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1
export TQDM_DISABLE=1 TRANSFORMERS_VERBOSITY=error DIFFUSERS_VERBOSITY=error
exec "${PYTHON:-python3}" "$folder/run.py" "$@"
