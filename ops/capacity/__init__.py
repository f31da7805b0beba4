"""Computes the cores, bytes and partitions that a deployment needs."""
