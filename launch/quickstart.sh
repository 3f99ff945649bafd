#!/usr/bin/env bash
# From nothing but Python 3.11+ and pip to a trained tiny Janus and its scores, on a CPU:
#   bash launch/quickstart.sh [DIR] [--recipe=tiny] [--gpu]
# Installs into .venv, pretrains the parts, trains all three stages, scores answers and generated images on what
# training never had, exports for PyTorch, and writes DIR/report.html. Run again, it goes on where it was stopped; what
# is finished is not done again. DIR is quickstart-output, or small-output; the recipe is configs/tiny.py, minutes on 2
# cores, or with --recipe=small configs/small.py, hours, and with --gpu too configs/small.py:gpu on an NVIDIA GPU.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
source "$root/launch/usage.sh"
recipe=tiny directory='' gpu=''
for argument in "$@"; do
  case $argument in
    --help | -h)
      usage
      exit
      ;;
    --recipe=tiny | --recipe=small) recipe=${argument#*=} ;;
    --recipe=*) wrong "${argument#*=} is no recipe for it: expected tiny or small" ;;
    --gpu) gpu=yes ;;
    -*) wrong "$argument is no flag: expected [DIR], --recipe=tiny, --gpu or --help" ;;
    *)
      [ -z "$directory" ] || wrong "expected one DIR, not $directory and $argument"
      directory=$argument
      ;;
  esac
done
# Questions of each kind and images of each skill, in each group: intervals of 4 points where it has hours.
case $recipe in
  tiny) directory=${directory:-$root/quickstart-output} questions=360 images=40 ;;
  small) directory=${directory:-$root/small-output} questions=400 images=400 ;;
esac
config=configs/$recipe.py extras=quickstart
if [ -n "$gpu" ]; then
  [ "$recipe" = small ] || wrong '--gpu is for --recipe=small: the steps of tiny.py are too small for one'
  config=$config:gpu extras=quickstart,gpu
fi
# Training answers Ctrl-C by saving and ending well: without this the script would score what is not finished.
trap 'echo "$(basename "$0"): stopped; the same command goes on" >&2; exit 130' INT TERM
mkdir -p "$directory/seconds"
directory=$(cd "$directory" && pwd)
cd "$root"
# In a file, a line of progress every ten seconds.
[ -t 2 ] || export TQDM_MININTERVAL=10
# Compiled programs, for the next run.
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$directory/cache}

# part NAME COMMAND...: runs it; its wall time goes to DIR/seconds/NAME, where it stays as it was the first time.
part() {
  local name=$1 start took
  shift
  echo "== $name"
  start=$(date +%s)
  "$@"
  took=$(($(date +%s) - start))
  if [ ! -e "$directory/seconds/$name" ]; then
    echo "$took" >"$directory/seconds/$name"
  fi
}

janus() {
  local verb=$1
  shift
  .venv/bin/python -m "janus_jax.$verb" "$@"
}


began=$(date +%s)
source launch/venv.sh
part installation make_venv "$extras"
if [ -e "$directory/parts/janus_config.json" ]; then
  echo "== pretraining: $directory/parts is there, kept"
else
  part pretraining janus pretrain --config="$config" --output="$directory/parts"
fi
# On matrix products as small as this model's XLA's older CPU kernels are faster: a step takes 42 ms in place of 64. A
# flag that XLA does not know would end every program, so it is tried first.
if [ -z "${XLA_FLAGS:-}$gpu" ]; then
  flags=--xla_cpu_experimental_ynn_fusion_type=
  if XLA_FLAGS=$flags .venv/bin/python -c 'import jax; jax.devices()' 2>/dev/null; then
    export XLA_FLAGS=$flags
  fi
fi
part training janus train --config="$config" --config.init_from="$directory/parts" \
  --config.data.directory="$directory/data" --workdir="$directory/run"
part evaluation janus evaluate --checkpoint="$directory/run" --out="$directory/scores" \
  --questions_per_kind="$questions" --images_per_group="$images" >/dev/null
# DeepSeek's layout: transformers' can say neither that the encoders cut the image into different grids, as tiny.py's do,
# nor that a VQ has no residual blocks, as small.py's.
part export janus convert --input="$directory/run" --output="$directory/export" --format=deepseek --overwrite

seconds=()
for name in installation pretraining training evaluation export; do
  seconds+=("--seconds=$name=$(cat "$directory/seconds/$name" 2>/dev/null || echo 0)")
done
part report janus report --workdir="$directory/run" --scores="$directory/scores" --out="$directory/report.html" \
  --title='Janus on the toy world' --path="PyTorch export=$directory/export" \
  --path="parts=$directory/parts" "${seconds[@]}"

echo
cat "$directory/scores/scores.txt"
echo
echo "seconds, each part when it was first finished"
for name in installation pretraining training evaluation export report; do
  printf '  %-14s %5s\n' "$name" "$(cat "$directory/seconds/$name" 2>/dev/null || echo '?')"
done
printf '  %-14s %5s\n' 'this call' $(($(date +%s) - began))
echo
for entry in "report report.html" "generations scores/generations.png" "scores scores/scores.json" \
  "checkpoints run/checkpoints" "curves run/metrics.jsonl" "export export"; do
  printf '%-12s %s\n' "${entry% *}" "$directory/${entry#* }"
done
