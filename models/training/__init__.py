"""From a history to a bundle: table, search, boosting, calibration."""
