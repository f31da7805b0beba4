"""report.html: what a replay found, for a person to read."""
