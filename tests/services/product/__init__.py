"""Processes and servers of Paywarden itself."""
