"""Gives a repeated payment the decision it got before: recent decisions, and claims on payment ids."""
