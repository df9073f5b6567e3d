"""HTTP: from a request to a call of the engine, and from its answer to a response."""
