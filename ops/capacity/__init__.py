"""How many cores, bytes and partitions a deployment needs."""
