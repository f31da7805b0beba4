"""Leads rollouts on live decisions and outcomes, and shows the newest one as metrics."""
