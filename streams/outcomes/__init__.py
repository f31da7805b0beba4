"""Outcomes joined to decisions, and the quality of the decisions by them."""
