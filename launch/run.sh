#!/usr/bin/env bash
# One program of janus_jax with an accelerator's flags: what every launcher here runs on every host.
#   bash launch/run.sh [--dry_run] ACCELERATOR VERB [--flag=value ...]
#   bash launch/run.sh --dry_run v5e train --config=configs/janus_pro_7b.py:gs://BUCKET/data \
#     --config.init_from=gs://BUCKET/start --workdir=gs://BUCKET/run
# ACCELERATOR is a file of launch/flags. What the caller has set stands: own XLA flags come last and win, other
# variables are kept. PYTHON names another Python than .venv's. --dry_run prints the command and runs nothing. Without
# arguments, this and the verbs are printed.
#
# What was compiled is kept in ~/.cache/janus_jax, so that a run that starts again (after a preemption, say) does not
# compile again; JAX_COMPILATION_CACHE_DIR names another place, and empty none.
#
# Stopped by SIGTERM, training saves and exits 0, and this exits 143: to a cluster 0 means that nothing is left to do.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/usage.sh
source launch/verbs.sh
source launch/dry_run.sh

# manual: the usage, the accelerators, and each verb with the first line of its own docstring.
manual() {
  local verb
  usage
  printf '\naccelerators: %s\nverbs (python -m janus_jax.VERB --help says their flags):\n' "$(xargs <<<"$accelerators")"
  for verb in $(verbs); do
    printf '  %-11s %s\n' "$verb" "$(sed --quiet '1s/^"""//p' "janus_jax/$verb.py")"
  done
}

# read_flags FILE: the file's variables as NAME=value in `settings`. Lines of one flag variable add up.
read_flags() {
  local line name xla=() tpu=()
  while IFS= read -r line; do
    name=${line%%=*}
    case $line in
      '' | '#'*) ;;
      XLA_FLAGS=*) xla+=("${line#*=}") ;;
      LIBTPU_INIT_ARGS=*) tpu+=("${line#*=}") ;;
      *) settings+=("$name=${!name-${line#*=}}") ;;
    esac
  done <"$1"
  # Without a space in front: XLA would take the value for the name of a file.
  [ ${#xla[@]} = 0 ] || settings+=("XLA_FLAGS=${xla[*]}${XLA_FLAGS:+ $XLA_FLAGS}")
  [ ${#tpu[@]} = 0 ] || settings+=("LIBTPU_INIT_ARGS=${tpu[*]}${LIBTPU_INIT_ARGS:+ $LIBTPU_INIT_ARGS}")
}

accelerators=$(basename --suffix=.env --multiple launch/flags/*.env)
dry_run=''
case ${1:-} in
  --dry_run | --dry-run)
    dry_run=1
    shift
    ;;
  --help | -h)
    manual
    exit
    ;;
  '')
    manual >&2
    exit 2
    ;;
esac
[ $# -ge 2 ] || wrong 'expected ACCELERATOR VERB [--flag=value ...]'
flags=launch/flags/$1.env
[ -f "$flags" ] || wrong "accelerator is $1: expected one of $(xargs <<<"$accelerators")"
grep --quiet --fixed-strings --line-regexp -- "$2" <<<"$(verbs)" ||
  wrong "verb is $2: expected one of $(verbs | xargs)"
if given dry_run "$@" || given dry-run "$@"; then
  wrong '--dry_run is among the flags of the verb: expected it first'
fi

settings=()
read_flags "$flags"
if [ "$1" != cpu ]; then  # Its programs compile in seconds, and run on no other kind of CPU.
  settings+=("JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR-${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/janus_jax}")
fi
command=(env "${settings[@]}" "${PYTHON:-.venv/bin/python}" -m "janus_jax.$2" "${@:3}")
if [ -n "$dry_run" ]; then
  run "${command[@]}"
  exit
fi

stopped=''
"${command[@]}" &
child=$!
trap 'trap "" TERM INT; stopped=1; kill -TERM "$child" || true' TERM INT
code=0
wait "$child" || code=$?
if [ -n "$stopped" ]; then  # The signal ended that wait, not the program.
  code=0
  wait "$child" || code=$?
  [ "$code" != 0 ] || code=143
fi
exit "$code"
