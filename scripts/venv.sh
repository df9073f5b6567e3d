# shellcheck shell=bash
# Sourced by the scripts beside it. Sets `root`; `bootstrap EXTRA…` sets `python` to the environment's Python.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)

# Prints the first Python that is new enough: $PYTHON, else python3, else a versioned name.
find_python() {
  local candidate
  for candidate in "${PYTHON:-}" python3 python3.14 python3.13 python3.12 python3.11 python; do
    [[ -n $candidate ]] || continue
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      printf '%s\n' "$candidate"
      return
    fi
  done
  echo "${0##*/}: no Python 3.11 or newer found." >&2
  echo "  Install one, or set PYTHON to its path." >&2
  return 1
}

bootstrap() {
  local found
  found=$(find_python)
  # shellcheck disable=SC2034 # the script that sources this file uses it
  python=$("$found" "$root/scripts/bootstrap.py" "$@")
}
