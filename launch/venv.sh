# Sourced by the scripts beside it: make_venv EXTRA makes .venv and installs the project with that extra.

find_python() {
  local candidate
  for candidate in "${PYTHON:-}" python3 python3.11 python3.12 python3.13 python; do
    if [ -n "$candidate" ] && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "no Python 3.11 or newer found; name one: PYTHON=/path/to/python bash $0" >&2
  return 1
}

make_venv() {
  local python
  if [ ! -x .venv/bin/python ]; then
    python=$(find_python)
    if ! "$python" -m venv .venv; then
      rm -rf .venv  # Half a .venv would be taken for a whole one next time.
      echo "could not make .venv with $python (on Debian and Ubuntu: apt install python3-venv)" >&2
      return 1
    fi
  fi
  # Not compiled: two fifths of the time (53 s to 32 s), most of it for modules that nothing here imports.
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-compile --editable ".[$1]"
}
