"""A model ready to serve: one folder, built, checked and loaded here."""
