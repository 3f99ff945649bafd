#!/usr/bin/env bash
# The whole test suite from nothing but Python 3.11+ and pip: makes .venv at the root, installs, lints, tests.
# Arguments go to pytest: `bash launch/test.sh tests/models -k siglip`.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/venv.sh
make_venv test

.venv/bin/ruff check .
.venv/bin/ruff format --check .
exec .venv/bin/python -m pytest -n auto --dist loadfile "$@"
