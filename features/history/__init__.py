"""Labelled payments as columns, and the vectors they had when they were made."""
