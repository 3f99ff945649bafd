# Sourced by the scripts beside it: make_venv EXTRA makes .venv and installs the project with that extra.
#
# .venv appears whole: it is made and filled as .venv.partial, then renamed. One that is there is tried before it is
# used. Where it cannot be used, it is made anew if nothing is lost with it, else left alone, with a word about it.

# failed MESSAGE: something is wrong with this machine.
failed() {
  echo "$(basename "$0"): $1" >&2
  exit 1
}

# version PYTHON: prints it, such as 3.12; fails where there is no such Python or it is too old.
version() {
  "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2]); sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

# find_python: puts the Python that .venv is made with into `python`, nothing where there is none. The one that PYTHON
# names is taken or refused.
find_python() {
  local candidate found
  python=''
  for candidate in ${PYTHON:+"$PYTHON"} python3 python3.11 python3.12 python3.13 python; do
    if found=$(version "$candidate"); then
      python=$candidate
      return
    elif [ "$candidate" = "${PYTHON:-}" ]; then
      failed "PYTHON is $PYTHON (${found:-it does not start}): expected Python 3.11 or newer"
    fi
  done
}

# fault: prints what is wrong with .venv, and nothing where it can be used. That pip's own script starts says that all of
# it belongs together: it holds the path at which the environment was made.
fault() {
  local found
  if ! found=$(version .venv/bin/python); then
    echo "has ${found:-no Python that starts}: expected Python 3.11 or newer"
  elif ! found=$(.venv/bin/pip --disable-pip-version-check --version 2>/dev/null); then
    echo 'has no pip that starts: half made, or moved here from elsewhere'
  elif found=${found#* from } && ! [ "${found%/lib/*}" -ef .venv ]; then
    echo "has the pip of ${found%/lib/*}: moved here from elsewhere"
  fi
}

# disposable: whether nothing is lost with .venv: it was made here, or is no more than an environment without packages.
disposable() {
  local names own='bin|include|lib|lib64|pyvenv\.cfg|\.gitignore'
  names=$(find .venv/ .venv/lib/python*/site-packages -mindepth 1 -maxdepth 1 -printf '%f\n' 2>/dev/null) || true
  own="$own|(pip|setuptools|pkg_resources|_distutils_hack|distutils-precedence).*"
  [ -e .venv/janus_jax.txt ] || ! grep --quiet --invert-match --extended-regexp "^($own)?\$" <<<"$names"
}

# install PYTHON EXTRA: the project into the environment of that Python.
install() {
  local log
  log=$(mktemp)
  # Not compiled: two fifths of the time (53 s to 32 s), most of it for modules that nothing here imports.
  "$1" -m pip install --quiet --disable-pip-version-check --no-compile --editable ".[$2]" >"$log" 2>&1 ||
    failed "pip has failed (network? disk?); once it can work, run this again: $(grep --only-matching --max-count=1 \
      'ERROR: .*' "$log" || tail --lines=1 "$log"), all of it in $log"
  rm "$log"
}

# make_new PYTHON EXTRA: in place of what is at .venv. Without a PYTHON, uv brings one.
make_new() {
  local made
  rm -rf .venv.partial
  if [ -n "$1" ]; then
    made=$("$1" -m venv .venv.partial 2>&1) ||
      failed "could not make .venv with $1 (on Debian and Ubuntu: apt install python3-venv): $(tail -n 1 <<<"$made")"
  else
    made=$(python3 -m pip install --quiet --user uv 2>&1) || failed "could not install uv: $(tail -n 1 <<<"$made")"
    made=$(python3 -m uv venv --quiet --seed --python 3.12 .venv.partial 2>&1) ||
      failed "uv could not bring Python 3.12: $(tail -n 1 <<<"$made")"
  fi
  install .venv.partial/bin/python "$2"
  echo 'Made by launch/venv.sh, which makes it anew where it is damaged.' >.venv.partial/janus_jax.txt
  # An environment's scripts hold its path.
  grep --files-with-matches --binary-files=without-match --fixed-strings .venv.partial \
    .venv.partial/bin/* .venv.partial/pyvenv.cfg | xargs sed --in-place 's/\.venv\.partial/.venv/g'
  rm -rf .venv
  mv .venv.partial .venv
}

# make_venv EXTRA [uv]: uv, where it may bring a Python.
make_venv() {
  local python wrong found
  find_python
  [ -n "$python" ] || [ "${2:-}" = uv ] || [ -z "$(fault)" ] ||
    failed "no Python 3.11 or newer found; name one: PYTHON=/path/to/python bash $0"

  # Two at once: one waits. The lock is that of an open file, and so ends with whoever holds it, pip included.
  exec 9>>launch/venv.sh
  if command -v flock >/dev/null && ! flock --nonblock 9; then
    echo "$(basename "$0"): waiting for the set-up of .venv that is under way" >&2
    flock 9
  fi
  if [ ! -e .venv ] && [ ! -L .venv ]; then
    make_new "$python" "$1"
  else
    wrong=$(fault)
    if [ -z "$wrong" ]; then
      found=$(version .venv/bin/python)
      [ -z "${PYTHON:-}" ] || [ "$found" = "$(version "$PYTHON")" ] ||
        failed "PYTHON is $PYTHON ($(version "$PYTHON")) and .venv has $found: move .venv away, or leave PYTHON out"
      # Of what pip was stopped in the middle of, it would believe that it is installed.
      for found in .venv/lib/python*/site-packages/*.dist-info; do
        [ -e "$found/INSTALLER" ] || rm -rf "$found"
      done
      install .venv/bin/python "$1"
    elif disposable; then
      echo "$(basename "$0"): .venv $wrong; it is made anew" >&2
      make_new "$python" "$1"
    else
      failed ".venv $wrong; it was not made here: move it away (mv .venv .venv.old), and run this again"
    fi
  fi
  exec 9>&-
}
