"""The health of the processes: readiness, lag, freshness, latency, mirror."""
