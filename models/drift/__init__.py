"""The mathematics of drift: counts of decisions, references with baselines, and sequential tests."""
