"""Drift alerts: their life, their causes, and their records on topics."""
