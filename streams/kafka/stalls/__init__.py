"""A reader that gets nothing although a topic has more: a client that stalls, and a transaction that stays open."""
