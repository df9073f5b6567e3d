"""What a node does with tasks: accept, place, store, claim, settle, read, keep house."""
