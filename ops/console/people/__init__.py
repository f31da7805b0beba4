"""Who somebody is: names, roles, passwords, tokens, OpenID Connect and sessions."""
