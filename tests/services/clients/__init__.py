"""Clients of the endpoint, of gRPC and of the topics, and load that kills what they talk to."""
