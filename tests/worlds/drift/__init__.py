"""Decisions, outcomes and alerts of worlds that change."""
