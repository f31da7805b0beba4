"""Who somebody is: names, roles, passwords, tokens and sessions."""
