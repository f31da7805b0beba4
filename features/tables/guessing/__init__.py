"""A first mapping of a table that nobody has described."""
