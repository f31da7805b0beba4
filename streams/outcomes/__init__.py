"""Outcomes joined to decisions, and what they say about them."""
