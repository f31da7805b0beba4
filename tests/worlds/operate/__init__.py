"""Texts that an operator reads and writes: alerts and their faults, the runbook, pages, a gateway's description."""
