# Sourced by the scripts beside it: run COMMAND... runs a command; where `dry_run` is not empty it prints it as one line
# that a shell would read back, and runs nothing.

run() {
  local word line=''
  if [ -z "$dry_run" ]; then
    "$@"
    return
  fi
  for word in "$@"; do
    case $word in
      '' | *[!a-zA-Z0-9_./:=,@%+-]*) word="'${word//\'/\'\\\'\'}'" ;;
    esac
    line="$line $word"
  done
  echo "${line# }"
}
