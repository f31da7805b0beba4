"""Everything that talks to Kafka: clients, topics, offsets, the schema registry."""
