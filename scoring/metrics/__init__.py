"""What a scoring host counts, shared by its workers."""
