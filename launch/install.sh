#!/usr/bin/env bash
# Makes .venv with janus_jax and extras on a machine of a cloud, whose own Python may be too old (TPU VMs have 3.10):
#   bash launch/install.sh tpu,gcs
# The extras are those of setup.py.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/usage.sh
source launch/venv.sh
answer_help "$@"
known=$(sed --quiet "s/^    '\([a-z0-9]*\)': .*/\1/p" setup.py)
if [ $# != 1 ]; then
  wrong 'expected EXTRA[,EXTRA ...], e.g. tpu,gcs or gpu,gcs'
fi
for extra in ${1//,/ }; do
  grep --quiet --line-regexp --fixed-strings -- "$extra" <<<"$known" ||
    wrong "extra is $extra: expected one of $(xargs <<<"$known")"
done
make_venv "$1" uv
