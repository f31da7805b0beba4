"""The ids of schemas: from a registry or without one, remembered on Kafka, listed for readers of the topics."""
