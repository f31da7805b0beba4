"""report.html: the results of a replay, for a person to read."""
