"""Units of systemd, run without systemd."""
