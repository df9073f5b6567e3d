#!/usr/bin/env bash
# Runs the tests; sets up all that they need (the environment, and a Redis or Valkey server if none is on PATH).
#   scripts/test.sh             unit, sim and integration tests, the stress test; the page, if there is a Chromium
#   scripts/test.sh --fast      unit and sim only: under two minutes
#   scripts/test.sh --sim       the simulator only, with ten times the seeds: some 4,000 runs, for the night
#   scripts/test.sh --chaos     kills, pauses and cuts processes on this machine
#   scripts/test.sh --browser   the page in a real Chromium: needs one, and the package playwright
#   scripts/test.sh --docker    with containers: docker-compose.yml as it stands
# All other arguments go to pytest: scripts/test.sh -k claim -x. It fails also when no test ran.
set -euo pipefail
# shellcheck source=scripts/venv.sh
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"

select=()
extra=()
for word in "$@"; do
  case $word in
    --fast)
      select+=(tests/unit tests/sim)
      extra+=(-n auto) # nothing in these measures time
      ;;
    --sim)
      select+=(tests/sim)
      extra+=(-n auto)
      export RUMOR_SIM_SEEDS=${RUMOR_SIM_SEEDS:-10} # times the usual number
      ;;
    --chaos) select+=(tests/chaos tests/netns) ;;
    --browser) select+=(tests/browser) ;;
    --docker)
      if ! docker version >/dev/null 2>&1; then
        echo "scripts/test.sh: skipped: no Docker engine answers." >&2
        exit 0
      fi
      select+=(tests/docker)
      ;;
    -h | --help)
      sed -n '2,9s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
      exit
      ;;
    *) extra+=("$word") ;;
  esac
done
if [[ ${#select[@]} -eq 0 && ! " ${extra[*]:-} " =~ \ tests/ ]]; then
  select=(tests/unit tests/sim tests/integration tests/stress_test.py tests/browser)
fi

bootstrap test
cd "$root"
# No setting of the shell that starts the tests may reach a test's node or Redis.
for name in $(compgen -e RUMOR_) $(compgen -e OTEL_); do
  [[ $name == RUMOR_SIM_* || $name == RUMOR_TEST_* ]] || unset "$name"
done
exec "$python" -m pytest ${select[@]+"${select[@]}"} ${extra[@]+"${extra[@]}"} </dev/null
