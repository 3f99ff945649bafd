# Sourced by the scripts beside it.

# usage: the comment at the top of the script.
usage() {
  sed --quiet '2,/^[^#]/s/^#\( \|$\)//p' "$(dirname "${BASH_SOURCE[0]}")/$(basename "$0")"
}

# answer_help [ARGUMENT...]: prints the usage and ends, if the first argument asks for it.
answer_help() {
  case ${1:-} in
    --help | -h)
      usage
      exit
      ;;
  esac
}

# wrong MESSAGE: wrong usage.
wrong() {
  echo "$(basename "$0"): $1" >&2
  exit 2
}
