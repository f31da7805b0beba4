"""Guards that stop or pause a worker: a store that is down, topics of another store, too many dead letters."""
