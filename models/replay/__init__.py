"""Replay a history through features, model and policy, and measure the decisions."""
