"""Whole clusters of `cluster.swim` in virtual time, with faults, from a seed: `python -m cluster.sim`."""
