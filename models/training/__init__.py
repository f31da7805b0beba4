"""Train a bundle from a history: table, search, boosting, calibration."""
