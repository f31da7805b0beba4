"""Rollouts: the arm of each card, the evidence about the arms, and when a candidate goes on or back."""
