"""The language that declares features, and the catalogue written in it."""
