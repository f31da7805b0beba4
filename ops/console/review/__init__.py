"""The review queue in the console."""
