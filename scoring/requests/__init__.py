"""From request bytes to checked payments, and from answers to bytes."""
