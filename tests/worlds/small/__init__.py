"""A small past, small models trained on it, and what they decide: made once per run, shared by many tests."""
