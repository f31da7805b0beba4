"""The log of the model registry on Kafka: hosts share it through the topic model-registry."""
