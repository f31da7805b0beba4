"""Train, compare, register and roll out what decides."""
