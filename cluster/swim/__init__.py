"""SWIM + Lifeguard + evidence: the pure membership protocol. See `cluster.swim.events` for what goes in and out."""
