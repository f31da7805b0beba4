"""For notebooks: a history's features, replays and evaluations as Arrow tables and numbers."""
