"""A scoring host's I/O: the changelog into the mirror, the outbox onto the topic."""
