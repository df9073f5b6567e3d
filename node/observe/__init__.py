"""What a node says of itself: metrics, reports, timeline, traces, logs."""
