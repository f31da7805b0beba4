"""Connects callers: listeners, TLS, tokens, connections."""
