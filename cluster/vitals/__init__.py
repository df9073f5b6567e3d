"""What must go on while a handler blocks the main loop: gossip, the heartbeat, fencing and the lease, on a thread."""
