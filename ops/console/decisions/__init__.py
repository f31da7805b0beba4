"""Decisions in the console: search, and the page of one."""
