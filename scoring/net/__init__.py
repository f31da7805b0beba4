"""How callers get in: listeners, TLS, tokens, connections."""
