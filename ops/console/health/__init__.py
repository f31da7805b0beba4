"""How the processes are: ready or not, lag, freshness, latency, mirror."""
