"""See what was decided, and what has changed."""
