#!/usr/bin/env bash
# Starts a Rumor cluster on this machine and acts on its nodes:
#   scripts/launch_cluster.sh [N] [--detach] [any flag of `rumor node`]
#   scripts/launch_cluster.sh status [--json] | kill K | pause K | resume K | restart K | add | stop
# This file makes the virtual environment; node/lab/commands.py does the rest (--help lists everything).
set -euo pipefail
# shellcheck source=scripts/venv.sh
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"

export RUMOR_LAUNCHER=$0 # how messages call this program
python=$root/.venv/bin/python
case ${1:-} in
  # These commands act on a running cluster: they need no install, and must not wait for one.
  status | kill | pause | resume | stop) [[ -x $python ]] || bootstrap ;;
  *)
    if [[ -n ${RUMOR_REDIS_URL:-} ]] || command -v redis-server >/dev/null ||
      command -v valkey-server >/dev/null; then
      bootstrap
    else
      bootstrap embedded # installs a server
    fi
    ;;
esac
exec "$python" -P -m node launch "$@"
