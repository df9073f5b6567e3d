#!/usr/bin/env bash
# Starts a Rumor cluster on this machine and acts on its nodes:
#   scripts/launch_cluster.sh [N] [--detach] [any flag of `rumor node`]
#   scripts/launch_cluster.sh status [--json] | kill K | pause K | resume K | restart K | add | stop
# This file makes the virtual environment; node/lab/commands.py does the rest (--help tells all).
set -euo pipefail
# shellcheck source=scripts/venv.sh
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"

export RUMOR_LAUNCHER=$0 # what to call this in messages
python=$root/.venv/bin/python
case ${1:-} in
  # Acting on what runs needs no install, and must not wait for one.
  status | kill | pause | resume | stop) [[ -x $python ]] || bootstrap ;;
  *)
    if [[ -n ${RUMOR_REDIS_URL:-} ]] || command -v redis-server >/dev/null ||
      command -v valkey-server >/dev/null; then
      bootstrap
    else
      bootstrap embedded # brings a server of its own
    fi
    ;;
esac
exec "$python" -P -m node launch "$@"
