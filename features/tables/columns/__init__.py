"""A column of a table, of any type: its texts, numbers and times."""
