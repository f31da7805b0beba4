"""Drift detection on live decisions."""
