#!/usr/bin/env bash
# Two minutes of a cluster in trouble: five nodes, a steady load, and a fault every few seconds. Lines report what the
# nodes saw and what followed; at the end the demo counts every task. Ctrl-C ends it and cleans up.
#   scripts/demo.sh [--seconds 120] [--rate 40] [--stay]
# RUMOR_BASE_PORT (5000) is the first port, as for scripts/launch_cluster.sh. The data directory is .rumor-demo, or `demo`
# in RUMOR_DATA_DIR: never that of another cluster.
set -euo pipefail
# shellcheck source=scripts/venv.sh
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"

if [[ -n ${RUMOR_REDIS_URL:-} ]] || command -v redis-server >/dev/null || command -v valkey-server >/dev/null; then
  bootstrap
else
  bootstrap embedded # installs a server
fi
exec "$python" "$root/scripts/demo.py" "$@"
