"""`paywarden doctor`: connects to everything that is configured, and lists faults with their remedies."""
