"""Turns payments into decisions: the micro-batcher, the scorer and the chain of models."""
