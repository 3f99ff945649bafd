#!/usr/bin/env bash
# Makes .venv with janus_jax and extras on a machine of a cloud, whose own Python may be too old (TPU VMs have 3.10):
#   bash launch/install.sh tpu,gcs
set -euo pipefail
if [ $# != 1 ]; then
  echo 'install.sh: expected EXTRA[,EXTRA ...], e.g. tpu,gcs or gpu,gcs' >&2
  exit 2
fi
cd "$(dirname "$0")/.."
source launch/venv.sh
if [ ! -x .venv/bin/python ] && ! find_python >/dev/null 2>&1; then
  python3 -m pip install --quiet --user uv
  python3 -m uv venv --quiet --seed --python 3.12 .venv
fi
make_venv "$1"
