"""What stops or pauses a worker: a store that is down, topics that are not the store's, too many dead letters."""
