"""Leads rollouts on live decisions and outcomes, and tells their events: the topic `rollouts`, and metrics."""
