"""The events of rollouts, on the topic `rollouts`."""
