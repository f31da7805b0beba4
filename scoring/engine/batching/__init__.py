"""Groups calls that are scored together: the requests of one turn, queues and pauses of callers, claims of batches."""
