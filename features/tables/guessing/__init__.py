"""A first mapping of a table without a description."""
