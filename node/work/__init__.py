"""Running handlers: on the loop, in threads and in child processes."""
