"""Membership on real sockets: the driver of `cluster.swim`, addresses and keys, and `rumor agent`."""
