#!/usr/bin/env bash
# The whole test suite from nothing but Python 3.11+ and pip: makes .venv at the root, installs, lints, tests.
# Arguments go to pytest: `bash launch/test.sh tests/models -k siglip`; its own: `.venv/bin/python -m pytest --help`.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/usage.sh
answer_help "$@"
source launch/venv.sh
make_venv test

.venv/bin/ruff check .
.venv/bin/ruff format --check .
# Tests start hundreds of processes. Where the caller keeps no bytecode, each would compile two thousand modules again,
# for two seconds.
export PYTHONDONTWRITEBYTECODE='' PYTHONPYCACHEPREFIX=$PWD/.venv/bytecode
# In the order of the files: otherwise those with few tests, which are the longest, come last, and a core waits.
exec .venv/bin/python -m pytest -n auto --dist loadfile --no-loadscope-reorder "$@"
