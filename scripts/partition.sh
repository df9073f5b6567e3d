#!/usr/bin/env bash
# Cuts the network of a running cluster, shows what its nodes believe, and heals it:
#   scripts/partition.sh split 1,2 3,4,5 | isolate 3 | no-gossip 3 | no-redis 3 | oneway 2 4 | loss 3 30% | reject 3
#   scripts/partition.sh heal | status | watch [--once]
# Acts on `scripts/launch_cluster.sh N --netns` (as root), else on the services of docker-compose.yml.
# This file makes the virtual environment; node/lab/partition.py does the rest (--help lists everything).
set -euo pipefail
# shellcheck source=scripts/venv.sh
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"

export RUMOR_LAUNCHER=$0 # how messages call this program
python=$root/.venv/bin/python
# Cuts act on a running cluster: they need no install, and must not wait for one.
[[ -x $python ]] || bootstrap
exec "$python" -P -m node partition "$@"
