"""SWIM + Lifeguard + evidence: the membership protocol. Every module is pure. `events` is what goes in and comes out."""
