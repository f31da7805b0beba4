"""Codes of ISO that payments hold: countries with their places, and categories of merchants with their names."""
