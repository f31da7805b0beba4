"""The index of decisions: search, the review queue, and analysts' verdicts, in a database of the console's own."""
