"""Train, compare, register and roll out models and policies."""
