"""What features are: the language that declares them, and the catalogue written in it."""
