"""Paywarden: real-time fraud scoring for payments."""
