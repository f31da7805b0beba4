"""Look at decisions, alerts and changes."""
