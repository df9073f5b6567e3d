"""A whole cluster on this machine: launch it, kill its nodes, cut its network."""
