# Sourced by the scripts beside it, in the root of the repository: the programs of janus_jax and what they take.

# verbs: their names, one a line.
verbs() {
  grep --files-with-matches '^if __name__' janus_jax/*.py | xargs basename --suffix=.py --multiple
}

# takes VERB FLAG: whether a program has a flag.
takes() {
  grep --quiet --fixed-strings "'$2'," "janus_jax/$1.py"
}

# given FLAG WORD...: whether it is among the words of a command.
given() {
  local word
  for word in "${@:2}"; do
    case $word in
      "--$1" | "--$1="* | "-$1" | "-$1="*) return ;;
    esac
  done
  return 1
}
