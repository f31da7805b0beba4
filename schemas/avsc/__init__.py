"""The Avro schemas of the topics, and the released ones they replaced."""
