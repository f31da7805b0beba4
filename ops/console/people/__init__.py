"""People: names, roles, passwords, tokens and sessions."""
