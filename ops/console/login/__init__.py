"""Log in: by name and password, as a demo person, or at an OpenID Connect provider."""
