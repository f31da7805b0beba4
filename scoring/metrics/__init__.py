"""The metrics of a scoring host, summed over its workers."""
