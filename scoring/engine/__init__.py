"""From payments to decisions: the micro-batcher, the scorer and the models it asks."""
