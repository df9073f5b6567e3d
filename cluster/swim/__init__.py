"""SWIM + Lifeguard + evidence: the membership protocol. Pure. See `cluster.swim.events` for what goes in and out."""
