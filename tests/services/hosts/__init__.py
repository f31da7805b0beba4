"""Hosts that a test makes break, hang or lie to the clients."""
