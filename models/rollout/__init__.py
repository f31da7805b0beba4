"""Rollouts: which arm decides about a card, what the arms differ in, and when a candidate goes on or back."""
