"""The overlay of the last seconds: its files, its table and its reader."""
