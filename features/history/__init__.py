"""Labelled payments as columns, and their feature vectors at the time of each payment."""
