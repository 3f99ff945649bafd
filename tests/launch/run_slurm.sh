#!/usr/bin/env bash
# launch/slurm.sbatch for real: a Slurm of one node on this machine, and a run of two tasks in it on the CPU.
#   bash tests/launch/run_slurm.sh [DIR]       # DIR: a new folder under /tmp; root only, 5 to 10 minutes on 2 cores
# Not part of the test suite: it installs slurm-wlm (Debian, Ubuntu) where it is missing, and starts its daemons, whose
# files, ports and keys are DIR's own, and ends them. Prints one line per check; ends with 1 at the first that fails.
set -euo pipefail
cd "$(dirname "$0")/../.."
directory=$(readlink -f "${1:-$(mktemp --directory)}")
mkdir -p "$directory"/{state,spool,logs}
export SLURM_CONF=$directory/slurm.conf

command -v slurmctld >/dev/null || apt-get install --yes --quiet --no-install-recommends slurm-wlm munge

# One node with this machine's cores. cred_expire: a job that is put back waits that long before it starts again.
cat >"$SLURM_CONF" <<END
ClusterName=janus
SlurmctldHost=$(hostname --short)(127.0.0.1)
SlurmUser=root
SlurmctldPort=16817
SlurmdPort=16818
AuthInfo=socket=$directory/munge.socket,cred_expire=10
StateSaveLocation=$directory/state
SlurmdSpoolDir=$directory/spool
SlurmctldPidFile=$directory/slurmctld.pid
SlurmdPidFile=$directory/slurmd.pid
SlurmctldLogFile=$directory/logs/slurmctld
SlurmdLogFile=$directory/logs/slurmd
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
ReturnToService=2
KillWait=120
MinJobAge=3600
NodeName=$(hostname --short) NodeAddr=127.0.0.1 CPUs=$(nproc)
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE
END

daemons=()
finish() {
  [ ${#daemons[@]} = 0 ] || kill "${daemons[@]}" 2>/dev/null || true
  echo "logs: $directory"
}
trap finish EXIT

head --bytes=128 /dev/urandom >"$directory/munge.key"
chmod 600 "$directory/munge.key"
munged --foreground --force --key-file="$directory/munge.key" --socket="$directory/munge.socket" \
  --pid-file="$directory/munge.pid" --seed-file="$directory/munge.seed" >"$directory/logs/munge" 2>&1 &
daemons+=($!)
sleep 1
slurmctld -D >"$directory/logs/slurmctld.out" 2>&1 &
daemons+=($!)
slurmd -D >"$directory/logs/slurmd.out" 2>&1 &
daemons+=($!)

# until_true SECONDS COMMAND...: waits for it.
until_true() {
  local left=$1
  shift
  until "$@"; do
    if [ "$left" -le 0 ]; then
      echo "FAILED: not in time: $*" >&2
      return 1
    fi
    left=$((left - 1))
    sleep 1
  done
}

state() {
  scontrol --oneliner show job "$1" | grep --only-matching 'JobState=[A-Z_]*' | cut --delimiter== --fields=2
}
is() { [ "$(state "$1")" = "$2" ]; }
over() { ! squeue --noheader --states=all --job="$1" --format=%T | grep --quiet 'PENDING\|RUNNING\|COMPLETING'; }
logged() { grep --quiet --no-messages "$2" "$directory/$1.log"; }
idle() { [ "$(sinfo --noheader --format=%T)" = idle ]; }

# submit NAME [--flag...]: puts a training run of two tasks into the queue; prints the job's id.
submit() {
  sbatch --parsable --job-name="$1" --output="$directory/%x.log" --gpus-per-node=0 --ntasks-per-node=2 \
    --cpus-per-task=1 launch/slurm.sbatch cpu train --config=configs/tiny.py --config.init_from="$directory/parts" \
    --config.data.directory="$directory/data" --config.data.num_train=100 --config.held_out_batches=1 \
    --config.sampling.num_images=0 --config.log_every=10 --config.save_every=10 --workdir="$directory/$1" \
    --config.stages.stage{1,2,3}.warmup_steps=0 --config.stages.stage{1,3}.steps=10 --config.stages.stage2.steps=60 \
    "${@:2}"
}

# last NAME: the last loss of a run.
last() {
  grep '"loss"' "$directory/$1/metrics.jsonl" | tail --lines=1 | grep --only-matching '"\(step\|loss\)": [^,}]*' | xargs
}

until_true 30 idle
echo "slurm $(slurmctld -V | cut --delimiter=' ' --fields=2): one node, $(nproc) CPUs"

JAX_PLATFORMS=cpu .venv/bin/python -m janus_jax.pretrain --config=configs/tiny.py --output="$directory/parts" \
  --config.data.directory="$directory/data" --config.data.num_train=100 --config.pretraining.vq.steps=25 \
  --config.pretraining.quantisation.unquantised_steps=5 --config.pretraining.vision.steps=40 \
  --config.pretraining.decoder.steps=40 2>"$directory/pretrain.log"

# finished NAME ID: waits for the end of a job, which has to be a good one.
finished() {
  until_true 400 over "$2"
  if ! is "$2" COMPLETED; then
    echo "FAILED: $1 is $(state "$2"): $(tail --lines=3 "$directory/$1.log")" >&2
    return 1
  fi
}

whole=$(submit whole)
finished whole "$whole"
echo "two tasks trained: $(last whole)"

stopped=$(submit stopped)
until_true 200 logged stopped 'step 3[0-9]'
scancel --signal=TERM "$stopped"  # What Slurm sends before the time limit and on preemption.
until_true 60 is "$stopped" PENDING
finished stopped "$stopped"
logged stopped 'resuming after step'
if [ "$(last stopped)" != "$(last whole)" ]; then
  echo "FAILED: stopped and taken up again: $(last stopped); in one go: $(last whole)" >&2
  exit 1
fi
echo "SIGTERM: saved, back into the queue, gone on, and the same: $(last stopped)"

cancelled=$(submit cancelled --config.save_every=1000)
until_true 200 logged cancelled 'step 3[0-9]'
scancel "$cancelled"
until_true 60 is "$cancelled" CANCELLED
until_true 60 idle
sleep 15
is "$cancelled" CANCELLED
saved=$(find "$directory/cancelled/checkpoints" -maxdepth 1 -printf '%f\n' | sort --numeric-sort | tail --lines=1)
if [ "$saved" -lt 30 ]; then
  echo "FAILED: scancel: the newest checkpoint is $saved: expected 30 or more" >&2
  exit 1
fi
echo "scancel: saved step $saved and ended"
