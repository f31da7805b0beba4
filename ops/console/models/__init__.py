"""Models and rollouts: versions, approvals and live evidence, and the acts of the registry and of rollouts."""
