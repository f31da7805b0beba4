"""Records that cannot be used: kept whole, counted, sent back when the cause is fixed."""
