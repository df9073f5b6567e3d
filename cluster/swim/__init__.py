"""SWIM + Lifeguard + evidence: the membership protocol. Pure, every module. `events` says what goes in and out."""
