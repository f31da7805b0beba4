"""`paywarden doctor`: connects to Kafka, registry and store, and lists faults with their remedies."""
