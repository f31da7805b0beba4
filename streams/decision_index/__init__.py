"""The index of decisions: search, the review queue, and what analysts said, in a database of the console's own."""
