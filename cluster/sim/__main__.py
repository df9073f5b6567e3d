"""`python -m cluster.sim`: plays a scenario and tells what happened."""

from cluster.sim.scenario import main

if __name__ == "__main__":
    raise SystemExit(main())
