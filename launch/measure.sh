#!/usr/bin/env bash
# What this machine does, in minutes: correctness, training, images and answers, beside transformers where it is there.
#   bash launch/measure.sh [--minutes=7] [--out=DIR] [--parts=NAME,...]
# Runs on .venv's Python, else on python3 where that has jax (PYTHON names another). Needs no files and no network.
# The rest is in janus_jax/measure.py.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/usage.sh
answer_help "$@"
if [ -z "${PYTHON:-}" ]; then
  PYTHON=.venv/bin/python
  [ -x "$PYTHON" ] || PYTHON=python3
fi
if ! "$PYTHON" -c 'import jax, flax, absl' 2>/dev/null; then
  echo "measure.sh: $PYTHON has no jax: expected .venv (bash launch/install.sh gpu, or tpu), or PYTHON=another" >&2
  exit 1
fi
export PYTHON
exec "$PYTHON" -m janus_jax.measure "$@"
