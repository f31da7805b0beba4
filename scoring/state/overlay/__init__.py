"""The overlay of the last seconds: its files, its table, its reader, and the marks that the companion writes."""
