"""Logs of a model registry, hosts that share one, and bundles for rollouts."""
