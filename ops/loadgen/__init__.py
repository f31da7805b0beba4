"""Open-loop load on a scoring endpoint, and its measurement."""
