#!/usr/bin/env bash
# Trains on Cloud TPU VMs that are asked for as a queued resource. From your own machine, with gcloud set up:
#   bash launch/tpu_vm.sh up   --name=janus --zone=us-west4-a --type=v5litepod-16 [--slices=2] [--spot ...]
#   bash launch/tpu_vm.sh run  --name=janus --zone=us-west4-a --type=v5litepod-16 train --config=... --workdir=gs://...
#   bash launch/tpu_vm.sh log | stop | install | down  --name=janus --zone=us-west4-a
# up asks for the slices, waits until they are there, copies this source tree and installs it; other options go to
# `gcloud ... queued-resources create`. run starts the same command on every worker and leaves it running; log follows
# worker 0; stop sends SIGTERM, on which training saves and ends; install copies the tree again; down gives all back.
# --dry_run before the action checks the same, prints the commands and runs nothing; --project=ID goes to all of them.
#
# A preempted request (--spot) becomes SUSPENDED and stays so, its machines are gone: down, up and the same run again go
# on where the newest checkpoint left off (the workdir is in a bucket). The warning is 30 seconds at most, so what
# counts is config.save_every. After maintenance the machines come back without the program: run again.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/usage.sh
source launch/dry_run.sh
source launch/verbs.sh

# on_workers SLICE WORKER COMMAND: runs a shell command on a worker of a slice; each may be `all`.
on_workers() {
  run gcloud compute tpus queued-resources ssh "$name" "${where[@]}" --node="$1" --worker="$2" --command="$3"
}

create() {
  local state request=(gcloud compute tpus queued-resources create "$name" "${where[@]}" --accelerator-type="$type")
  if [ "$slices" = 1 ]; then
    request+=(--node-id="$name")
  else
    request+=(--node-count="$slices" --node-prefix="$name")
  fi
  run "${request[@]}" --runtime-version="$runtime" ${options[@]+"${options[@]}"}
  while true; do
    state=$(run gcloud compute tpus queued-resources describe "$name" "${where[@]}" --format='value(state.state)')
    case $state in
      ACTIVE) break ;;
      FAILED | SUSPENDED)
        echo "tpu_vm.sh: $name is $state: expected ACTIVE" >&2
        exit 1
        ;;
      gcloud*)  # A dry run.
        echo "$state"
        break
        ;;
      *)
        echo "$(date +%T) $name: $state"
        sleep 30
        ;;
    esac
  done
}

# check_size: the tree goes to every host, so weights and data do not belong in it.
check_size() {
  local sizes total
  sizes=$(du -sm --apparent-size --exclude=quickstart-output --exclude=__pycache__ -- * | sort --numeric-sort --reverse)
  total=$(awk '{ total += $1 } END { print total }' <<<"$sizes")
  if [ "$total" -gt 200 ]; then
    wrong "$(head -n 1 <<<"$sizes" | cut -f 2) and the rest of this folder, which goes to every host, have $total MB: expected \
at most 200: move weights and data out"
  fi
}

install() {
  local archive=${TMPDIR:-/tmp}/janus_jax-$name.tgz
  check_size
  run tar --create --gzip --file="$archive" --exclude='./.venv*' --exclude=./quickstart-output --exclude=__pycache__ .
  run gcloud compute tpus queued-resources scp "$archive" "$name:janus_jax.tgz" "${where[@]}" --node=all --worker=all
  on_workers all all \
    'mkdir -p janus_jax && tar -xzf janus_jax.tgz -C janus_jax && bash janus_jax/launch/install.sh tpu,gcs'
}

start() {
  local program
  bash launch/run.sh --dry_run "$accelerator" "$@" >/dev/null
  if takes "$1" distributed && ! given distributed "$@"; then
    set -- "$@" --distributed=auto
  fi
  program=$(dry_run=1 && run bash launch/run.sh "$accelerator" "$@")
  on_workers all all "cd janus_jax || exit 1; \
! kill -0 \$(cat janus.pid 2>&1) 2>/dev/null || { echo 'running already: stop it first' >&2; exit 1; }; \
nohup $program >>janus.log 2>&1 </dev/null & echo \$! >janus.pid"
}

case ${1:-} in
  --help | -h)
    usage
    exit
    ;;
  '')
    usage >&2
    exit 2
    ;;
esac
dry_run='' action='' name='' zone='' type='' slices=1 where=() options=()
while [ $# -gt 0 ]; do
  case $1 in
    --dry_run | --dry-run) dry_run=1 ;;
    --name=*) name=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --type=*) type=${1#*=} ;;
    --slices=*) slices=${1#*=} ;;
    --project=*) where+=("$1") ;;
    --*) options+=("$1") ;;
    *) if [ -z "$action" ]; then action=$1; else break; fi ;;
  esac
  shift
done
type=${type/#v5e-/v5litepod-} # As `plan` calls it.
case $type in
  v5litepod-*) accelerator=v5e runtime=v2-alpha-tpuv5-lite sizes='1 4 8 16 32 64 128 256' ;;
  # Cores, two a chip; from 64 chips on in whole cubes of as many.
  v5p-*) accelerator=v5p runtime=v2-alpha-tpuv5 sizes="8 16 32 64 $(seq --separator=' ' 128 128 12288)" ;;
  v6e-*) accelerator=v6e runtime=v2-alpha-tpuv6e sizes='1 4 8 16 32 64 128 256' ;;
  *) accelerator='' runtime='' sizes='' ;;
esac
if [ -n "$accelerator" ] && ! grep --quiet --line-regexp --fixed-strings -- "${type#*-}" <<<"${sizes// /$'\n'}"; then
  [ "$accelerator" != v5p ] || sizes='8 16 32 64, or a multiple of 128 up to 12288'
  wrong "type is $type: expected ${type%%-*}-N, N being one of $sizes"
fi
case $action in
  up | run) [ -n "$accelerator" ] || wrong "type is '$type': expected v5e-N (v5litepod-N), v5p-N or v6e-N" ;;
  install | log | stop | down) ;;
  *) wrong "action is '$action': expected up, install, run, log, stop or down (--help says more)" ;;
esac
[ -n "$name" ] && [ -n "$zone" ] || wrong 'expected --name=NAME and --zone=ZONE'
[[ $slices =~ ^[1-9][0-9]*$ ]] || wrong "slices is '$slices': expected 1 or more"
[ "$action" = up ] || [ ${#options[@]} = 0 ] || wrong "$action has no option ${options[0]}"
[ "$action" = run ] || [ $# = 0 ] || wrong "$action has no argument $1"
[ "$action" != run ] || [ $# -gt 0 ] || wrong 'expected VERB [--flag=value ...] after the options of run'
where=(--zone="$zone" ${where[@]+"${where[@]}"})

case $action in
  up)
    create
    install
    ;;
  install) install ;;
  run) start "$@" ;;
  log) on_workers 0 0 'tail -n 100 -F janus_jax/janus.log' ;;
  stop) on_workers all all "kill -TERM \$(cat janus_jax/janus.pid)" ;;
  down) run gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force --quiet ;;
esac
