"""Start servers, put a load on them, print tables."""
