"""The mathematics of drift: counts of decisions, references of what is usual, and detectors."""
